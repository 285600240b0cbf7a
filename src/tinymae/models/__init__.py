"""What is trained: the masked autoencoder, its relatives, and classifiers on their encoders."""
