"""What is known of ops that are opened into others before anything is bounded?

They have no facts: a certificate asks about what they are made of. Recorded steps hold them all the
same, so a diagnosis, an estimate or a plan has to know what they do. Ops that no rule can open are
here as well, where something is known of them.
"""

from dataclasses import dataclass, replace

from numgeom.ops import kernel_errors as kernels
from numgeom.ops.kinks import AT_ZERO, NO_KINKS, Kinks, Where
from numgeom.ops.traits import NO_TRAITS, Autocast, Poles, Traits


@dataclass(frozen=True)
class Composite:
    """An op without facts of its own.

    Attributes:
        name: Functional name without namespace and overload.
        kinks: Where it has no derivative.
        traits: What it does with its arguments.
    """

    name: str
    kinks: Kinks = NO_KINKS
    traits: Traits = NO_TRAITS


_WIDE = Traits(autocast=Autocast.WIDE_ON_CUDA)
_ATTENTION = Traits(autocast=Autocast.LOW)
_UNREPEATABLE = Traits(nondeterministic_on_cuda=True)
_INVERSE = Traits(poles=Poles(entrywise=False))
_NORM = Traits(normalizes=True)
# The second derivative alone jumps.
_BENT = Kinks(Where.BOUND, "at delta, of the second derivative", inputs=(0, 1), order=2)


def _kinked(name: str, where: Where, sentence: str, traits: Traits = NO_TRAITS) -> Composite:
    return Composite(name, Kinks(where, sentence), traits)


def _backward(name: str, *, kernel: kernels.Kernel = kernels.PLAIN, kinks: Kinks = NO_KINKS,
              autocast: Autocast = Autocast.AS_GIVEN) -> Composite:  # fmt: skip
    """The derivative of an activation."""
    traits = Traits(entrywise=True, activation_backward=True, kernel=kernel, autocast=autocast)
    return Composite(name, kinks, traits)


_OF_X = replace(AT_ZERO, inputs=(1,), jumps=True)
_AT_THREE = Kinks(Where.BOUND, "at -3 and 3", inputs=(1,), jumps=True)

COMPOSITES: tuple[Composite, ...] = (
    # Softmax.
    Composite("_softmax", traits=replace(_WIDE, kernel=kernels.SOFTMAX)),
    Composite("_safe_softmax", traits=Traits(kernel=kernels.SOFTMAX)),
    Composite("_log_softmax", traits=replace(_WIDE, kernel=kernels.THREE_STEPS)),
    Composite(
        "_softmax_backward_data", traits=replace(_WIDE, adds=True, kernel=kernels.SOFTMAX_BACKWARD)
    ),
    Composite("_log_softmax_backward_data", traits=replace(_WIDE, kernel=kernels.ALONG_ROW)),
    Composite("logsumexp", traits=Traits(largest=True, kernel=kernels.THREE_STEPS)),
    # Normalization.
    Composite(
        "native_layer_norm", traits=replace(_WIDE, normalizes=True, kernel=kernels.LAYER_NORM)
    ),
    Composite(
        "native_layer_norm_backward", traits=replace(_WIDE, kernel=kernels.LAYER_NORM_BACKWARD)
    ),
    Composite(
        "native_group_norm", traits=replace(_WIDE, normalizes=True, kernel=kernels.GROUP_NORM)
    ),
    Composite(
        "native_group_norm_backward", traits=replace(_WIDE, kernel=kernels.LAYER_NORM_BACKWARD)
    ),
    Composite("_fused_rms_norm", traits=replace(_NORM, kernel=kernels.RMS_NORM)),
    Composite("_fused_rms_norm_backward", traits=Traits(kernel=kernels.RMS_NORM_BACKWARD)),
    *(
        Composite(name, traits=replace(_NORM, kernel=kernels.BATCH_NORM))
        for name in (
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_functional",
            "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm",
        )
    ),
    Composite("native_batch_norm_backward", traits=Traits(kernel=kernels.BATCH_NORM_BACKWARD)),
    # Attention, products of groups, recurrent layers.
    Composite(
        "_scaled_dot_product_flash_attention_for_cpu",
        traits=replace(_ATTENTION, kernel=kernels.FLASH_ATTENTION),
    ),
    Composite(
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        traits=replace(_ATTENTION, kernel=kernels.FLASH_ATTENTION_BACKWARD),
    ),
    Composite("_scaled_dot_product_flash_attention", traits=_ATTENTION),
    Composite("_scaled_dot_product_flash_attention_backward", traits=_ATTENTION),
    Composite("_scaled_dot_product_efficient_attention", traits=_ATTENTION),
    Composite("_scaled_dot_product_efficient_attention_backward", traits=_ATTENTION),
    Composite("_grouped_mm", traits=replace(_ATTENTION, kernel=kernels.GROUPED_PRODUCT)),
    Composite("mkldnn_rnn_layer", traits=Traits(kernel=kernels.RECURRENT)),
    _kinked(
        "mkldnn_rnn_layer_backward",
        Where.ZERO,
        "at 0, with ReLU",
        Traits(kernel=kernels.RECURRENT_BACKWARD),
    ),
    # Losses.
    Composite("nll_loss_forward", traits=replace(_WIDE, kernel=kernels.NLL_LOSS)),
    Composite("nll_loss_backward", traits=_WIDE),
    Composite("nll_loss2d_forward", traits=_UNREPEATABLE),
    Composite("_ctc_loss_backward", traits=_UNREPEATABLE),
    *(
        Composite(name, _BENT)
        for name in (
            "huber_loss",
            "huber_loss_backward",
            "smooth_l1_loss",
            "smooth_l1_loss_backward",
        )
    ),
    _kinked("multi_margin_loss", Where.BOUND, "at the margin"),
    _kinked("multilabel_margin_loss_forward", Where.BOUND, "at the margin"),
    # Derivatives of activations.
    _backward("gelu_backward", kernel=kernels.GELU_BACKWARD),
    _backward("silu_backward", kernel=kernels.THREE_STEPS),
    _backward("mish_backward", kernel=kernels.THREE_STEPS),
    _backward("log_sigmoid_backward"),
    _backward("softplus_backward", kernel=kernels.THREE_STEPS, autocast=Autocast.WIDE_ON_CUDA),
    _backward("elu_backward", kernel=kernels.THREE_STEPS, kinks=_OF_X),
    _backward("hardsigmoid_backward", kinks=_AT_THREE),
    _backward("hardswish_backward", kinks=_AT_THREE),
    Composite("_prelu_kernel_backward", _OF_X),
    _kinked("rrelu_with_noise", Where.ZERO, "at 0"),
    _kinked("rrelu_with_noise_functional", Where.ZERO, "at 0"),
    # Steps, and other functions entry by entry.
    Composite(
        "heaviside",
        replace(AT_ZERO, jumps=True),
        Traits(entrywise=True, piecewise_constant=True),
    ),
    Composite(
        "logit", Kinks(Where.BOUND, "at eps and 1 - eps"), Traits(entrywise=True, poles=Poles())
    ),
    Composite("special_log_ndtr", traits=Traits(entrywise=True, poles=Poles())),
    # Linear algebra.
    Composite("linalg_inv_ex", traits=_INVERSE),
    Composite("_linalg_solve_ex", traits=_INVERSE),
    Composite("linalg_cholesky_ex", traits=_INVERSE),
    Composite("cholesky", traits=_INVERSE),
    _kinked("_linalg_eigh", Where.TIP, "where eigenvalues coincide"),
    _kinked("_linalg_svd", Where.TIP, "where singular values coincide"),
    _kinked("linalg_eig", Where.TIP, "where eigenvalues coincide"),
    _kinked("linalg_lstsq", Where.CUT, "where the rank changes"),
    _kinked("linalg_pinv", Where.CUT, "where the rank changes"),
    # Norms and distances.
    _kinked("_pdist_forward", Where.TIP, "points that coincide"),
    _kinked("cosine_similarity", Where.BOUND, "where a norm is eps"),
    _kinked("dist", Where.TIP, "points that coincide"),
    _kinked("renorm", Where.BOUND, "where a norm is the largest allowed"),
    _kinked("norm", Where.TIP, "x = 0", Traits(poles=Poles(of_value=False))),
    # Choices, places, windows.
    _kinked("mode", Where.TIE, "ties of the commonest entry"),
    _kinked("segment_reduce", Where.TIE, "ties, for max and min"),
    _kinked("index_reduce", Where.TIE, "ties, for amax and amin", _UNREPEATABLE),
    _kinked("fractional_max_pool3d", Where.TIE, "ties of the largest entry of a window"),
    _kinked("grid_sampler_2d", Where.WHOLE, "at the corners of the grid"),
    _kinked("grid_sampler_3d", Where.WHOLE, "at the corners of the grid"),
    *(
        Composite(name, traits=_UNREPEATABLE)
        for name in (
            "_embedding_bag_backward",
            "_embedding_bag_dense_backward",
            "adaptive_avg_pool3d_backward",
            "bincount",
            "fractional_max_pool3d_backward",
            "grid_sampler_2d_backward",
            "grid_sampler_3d_backward",
            "max_unpool2d",
            "max_unpool3d",
            "put",
            "resize",
        )
    ),
)
