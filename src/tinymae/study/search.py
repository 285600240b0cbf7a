"""Bayesian search for a family's settings, by Optuna's tree-structured Parzen estimator."""

from collections.abc import Callable, Collection
from pathlib import Path

from ..errors import InputError
from ..files import write_json
from ..models.families import FAMILIES
from ..randomness import derive_seed

RANDOM_TRIALS = 5  # before the estimator has something to go by


def require_optuna():
    """The optuna package. Raises InputError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise InputError("search optuna needs the package: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def search_space(family: str, *, values: int, given: Collection[str]) -> dict:
    """Which settings of a family are searched, and where, but for those that are `given`.

    `values` is how many numbers an image has.
    """
    optuna = require_optuna()
    real, choice = optuna.distributions.FloatDistribution, optuna.distributions.CategoricalDistribution
    latents = (16, 32, 64, 128, 256)
    losses = choice(["mse", "l1", "0.8*ssim+0.2*l1"])
    masks = {"mask_ratio": real(0.4, 0.85)}
    own = {
        "mae": masks,
        "conv_ae": {"latent_dim": choice([None, *latents]), "width": choice([32, 64]), "loss": losses},
        "vae": {"latent_dim": choice(latents), "width": choice([32, 64]), "beta": real(0.01, 4, log=True)},
        "vqvae": {"latent_dim": choice([8, 16, 32]), "codebook_size": choice([128, 512, 1024]), "loss": losses},
        "resnet_unet": {"loss": losses},
        "masked_conv": masks,
        "pca": {"latent_dim": choice([latent for latent in latents if latent <= values])},
    }
    space = {"base_lr": real(2e-4, 1e-2, log=True), "weight_decay": real(0.005, 0.5, log=True)}
    if FAMILIES[family].fitted:  # there is nothing to learn at a rate
        space = {}
    space |= own.get(family, {})  # of a family without ranges of its own, those that all have are searched
    return {name: where for name, where in space.items() if name not in given}


def search(
    objective: Callable[[int, dict], float], space: dict, recipe: dict, *, folder: Path, storage: Path, study_name: str,
    trials: int, seed: int,
) -> dict | None:  # fmt: skip
    """The best of `trials` settings, `trials` counting those that `storage` (SQLite) holds already.

    `objective(number, settings)` is maximised. Trial 0 is the family's recipe, if the space has it, so that what is
    found is never worse. Trial n draws from (seed, n) and the results before it: a search that was interrupted
    proposes the same settings again, and its objective may go on where it stopped.

    Returns, and writes to best.json in `folder`: the best trial's number, its settings, its value, and how many trials
    there were. None if the space is empty.
    """
    if not space:
        return None
    recipe = {name: recipe[name] for name in space}
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
    settings = done[number].params
    best = {"trial": number, "settings": settings, "value": done[number].value, "trials": len(done)}
    write_json(folder / "best.json", best)
    print(f"{study_name}: trial {number} of {len(done)} is best, {best['value']:.2f} %, {settings}")
    return best


def holds(distribution, value) -> bool:
    """Whether a distribution may give this value."""
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    return distribution.low <= value <= distribution.high
