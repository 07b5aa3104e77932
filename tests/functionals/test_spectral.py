import flint
import pytest
import torch

from numgeom.functionals.spectral import spectral_norm_up


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 7), (7, 2), (40, 12), (4, 6, 5), (0, 3)])
@pytest.mark.parametrize("scale", [1.0, 1e-120, 1e120, 1e-310])
def test_no_vector_is_stretched_more(shape, scale):
    generator = torch.Generator().manual_seed(1)
    m = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
    bound = spectral_norm_up(m)
    if m.numel() == 0:
        assert bound == 0.0
        return
    true = float(torch.linalg.matrix_norm(m / scale, 2).max()) * scale
    assert bound >= true * (1 - 1e-13)
    if scale in (1.0,):
        assert bound < 1.3 * true


def test_the_bound_is_rigorous_for_known_norms():
    """Orthogonal columns of one length: the norm is known exactly as a rational's root."""
    for n in range(1, 12):
        m = torch.full((n, n), 1.0 / 3.0, dtype=torch.float64)
        true = flint.fmpq(*(1.0 / 3.0).as_integer_ratio()) * n  # rank one: n times the entry
        bound = spectral_norm_up(m)
        assert flint.fmpq(*bound.as_integer_ratio()) >= true
        assert bound < 1.0000001 * float(true.p) / float(true.q)


def test_values_that_are_not_finite_bound_nothing():
    m = torch.eye(3, dtype=torch.float64)
    m[0, 1] = torch.inf
    assert spectral_norm_up(m) == torch.inf
    m[0, 1] = torch.nan
    assert spectral_norm_up(m) == torch.inf
