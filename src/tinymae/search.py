"""Bayesian search for a family's settings, by Optuna's tree-structured Parzen estimator."""

from collections.abc import Callable
from pathlib import Path

from .files import InputError
from .randomness import derive_seed

RANDOM_TRIALS = 5  # before the estimator has something to go by


def require_optuna():
    """The optuna package. Raises InputError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise InputError("search optuna needs the package: pip install 'tinymae[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def search_space(family: str, *, values: int) -> dict:
    """Which settings of a family are searched, and where; `values` is how many numbers an image has."""
    optuna = require_optuna()
    real, choice = optuna.distributions.FloatDistribution, optuna.distributions.CategoricalDistribution
    latents = (16, 32, 64, 128, 256)
    if family == "pca":  # fitted at once: there is nothing to learn at a rate
        return {"latent_dim": choice([latent for latent in latents if latent <= values])}
    losses = choice(["mse", "l1", "0.8*ssim+0.2*l1"])
    masks = {"mask_ratio": real(0.4, 0.85)}
    space = {"base_lr": real(2e-4, 1e-2, log=True), "weight_decay": real(0.005, 0.5, log=True)}
    return (
        space
        | {
            "mae": masks,
            "conv_ae": {"latent_dim": choice([None, *latents]), "width": choice([32, 64]), "loss": losses},
            "vae": {"latent_dim": choice(latents), "width": choice([32, 64]), "beta": real(0.01, 4, log=True)},
            "vqvae": {"latent_dim": choice([8, 16, 32]), "codebook_size": choice([128, 512, 1024]), "loss": losses},
            "resnet_unet": {"loss": losses},
            "masked_conv": masks,
        }[family]
    )


def search(
    objective: Callable[[int, dict], float], space: dict, recipe: dict, *, study_name: str, trials: int, seed: int,
    storage: Path,
) -> dict:  # fmt: skip
    """The best of `trials` settings, `trials` counting those that `storage` (SQLite) holds already.

    `objective(number, settings)` is maximised. Trial 0 is the family's recipe, if the space has it, so that what is
    found is never worse. Trial n draws from (seed, n) and the results before it: a search that was interrupted
    proposes the same settings again, and its objective may go on where it stopped.

    Returns {"trial": its number, "settings": name -> value, "value": the objective's}.
    """
    optuna = require_optuna()
    study = optuna.create_study(
        study_name=study_name, storage=f"sqlite:///{storage}", load_if_exists=True, direction="maximize"
    )
    for cut in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(cut.number, state=optuna.trial.TrialState.FAIL)
    complete = (optuna.trial.TrialState.COMPLETE,)
    while (number := len(study.get_trials(states=complete))) < trials:
        if number == 0 and all(holds(space[name], value) for name, value in recipe.items()):
            value = objective(number, recipe)
            trial = optuna.trial.create_trial(params=recipe, distributions=space, value=value)
            study.add_trial(trial)
            continue
        # A sampler that lived on would draw other numbers after a resumption than without one.
        study.sampler = optuna.samplers.TPESampler(
            seed=derive_seed(seed, "trial", number) % 2**32, n_startup_trials=RANDOM_TRIALS
        )
        trial = study.ask(space)
        study.tell(trial, objective(number, trial.params))
    done = study.get_trials(states=complete)
    number = max(range(len(done)), key=lambda number: done[number].value)
    return {"trial": number, "settings": done[number].params, "value": done[number].value}


def holds(distribution, value) -> bool:
    """Whether a distribution may give this value."""
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    return distribution.low <= value <= distribution.high


def as_flags(settings: dict) -> list[str]:
    """Settings as a command line has them; one that is None is left out."""
    flags = ((f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items() if value is not None)
    return [word for pair in flags for word in pair]
