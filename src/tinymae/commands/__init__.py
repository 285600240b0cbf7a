"""What people run: settings and the story of each command."""
