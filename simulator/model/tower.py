"""An encoder of images beside the decoder: its size, and what one image costs."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.base.checks import require_positive
from simulator.model.layer import FfnSpec


@dataclass(frozen=True, slots=True)
class TowerSpec:
    """A vision transformer over the patches of an image, and the projector to the decoder's width.

    Attributes
    ----------
    hidden, n_layers, n_heads : int
        Width of its residual stream, layers that run, heads of ``hidden / n_heads``.
    ffn : FfnSpec
    pixels : int
        Width and height of the image that `patches` and `tokens` are of.
    patches : int
        Patches of one image.
    patch_inputs : int
        Values of one patch.
    tokens : int
        Prompt tokens of one image: what is left after patches are merged.
    projector : tuple of (int, int)
        Inputs and outputs of the matrices that every token passes at the end.
    n_params : int
        Parameters of tower and projector, those of layers that are loaded but not run included.
    window, n_windowed : int
        Patches that attend to each other in `n_windowed` of the layers; 0 = all.
    resizes : bool
        Images of other sizes have other numbers of patches; False: every image is brought to `pixels`.
    """

    hidden: int
    n_layers: int
    n_heads: int
    ffn: FfnSpec
    pixels: int
    patches: int
    patch_inputs: int
    tokens: int
    projector: tuple[tuple[int, int], ...]
    n_params: int
    window: int = 0
    n_windowed: int = 0
    resizes: bool = True

    def __post_init__(self) -> None:
        require_positive(
            self, "hidden", "n_layers", "n_heads", "pixels", "patches", "patch_inputs", "tokens", "n_params"
        )
