import numpy as np
import pytest
import torch

from penstock.pipes.draws import Draws
from penstock.pipes.sample import Ref
from penstock.recipes.training.noise import SampleNoise, seed_step

REFS = torch.tensor([[0, 3, 17], [2, 0, 5], [0, 3, 18]])


def test_uniforms_are_those_of_the_pipes() -> None:
    got = SampleNoise(9).uniform(REFS, "time")
    assert got.dtype == torch.float64
    assert got.tolist() == [Draws(9, Ref(*r)).uniform("time") for r in REFS.tolist()]
    assert torch.equal(SampleNoise(9).uniform(REFS.tolist(), "time"), got)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4)])
def test_normals_are_those_of_the_pipes_bits(shape: tuple[int, ...]) -> None:
    got = SampleNoise(9).normal(REFS, shape, dtype=torch.float64, purpose="x")
    assert got.shape == (3, *shape)
    for row, ref in zip(got.reshape(3, -1).tolist(), REFS.tolist(), strict=True):
        draws = Draws(9, Ref(*ref))
        u = [draws.bits("x", n) >> 11 for n in range(len(row) + len(row) % 2)]
        want = []
        for a, b in zip(u[::2], u[1::2], strict=True):
            radius, angle = np.sqrt(-2 * np.log((a + 1) * 2.0**-53)), 2 * np.pi * b * 2.0**-53
            want += [radius * np.cos(angle), radius * np.sin(angle)]
        np.testing.assert_allclose(row, want[: len(row)], rtol=1e-12, atol=1e-14)


def test_a_row_is_its_own_whatever_the_batch() -> None:
    noise = SampleNoise(1)
    whole = noise.normal(REFS, (4, 6))
    for i in range(3):
        assert torch.equal(noise.normal(REFS[i : i + 1], (4, 6))[0], whole[i])
    assert torch.equal(noise.normal(REFS.flip(0), (4, 6)), whole.flip(0))
    # A longer row begins as a shorter one: only the counter goes on.
    assert torch.equal(noise.normal(REFS, (30,))[:, :24], whole.flatten(1))


def test_seed_ref_and_purpose_all_tell() -> None:
    first = SampleNoise(1).normal(REFS, (64,))
    assert not torch.equal(first[0], first[2])
    for other in (
        SampleNoise(2).normal(REFS, (64,)),
        SampleNoise(1).normal(REFS, (64,), purpose="other"),
        SampleNoise(1).normal(REFS + torch.tensor([1, 0, 0]), (64,)),
        SampleNoise(1).normal(REFS + torch.tensor([0, 1, 0]), (64,)),
    ):
        assert (other - first).abs().min() > 0


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    SampleNoise(1).normal(REFS, (64,))
    SampleNoise(1).uniform(REFS, "x")
    assert torch.equal(torch.get_rng_state(), before)


def test_normals_are_normal() -> None:
    refs = [(0, 0, i) for i in range(64)]
    x = SampleNoise(3).normal(refs, (16, 32, 32), dtype=torch.float64).flatten(1)
    n = x.numel()  # a million
    assert abs(float(x.mean())) < 4 / n**0.5
    assert abs(float(x.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((x**3).mean())) < 4 * (15 / n) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 4 * (96 / n) ** 0.5
    # Kolmogorov and Smirnov: beyond 1.95 / sqrt(n) in one of a thousand.
    order = x.flatten().sort().values
    below = 0.5 * (1 + torch.erf(order / 2**0.5))
    assert float((below - torch.arange(n) / n).abs().max()) < 1.95 / n**0.5
    # Neighbours, the halves of a pair, rows and the same place in rows go their own ways.
    for a, b in (
        (x[:, :-1], x[:, 1:]),
        (x[:, ::2], x[:, 1::2]),
        (x[:-1], x[1:]),
        (x[:, ::2] ** 2 - 1, x[:, 1::2] ** 2 - 1),
    ):
        assert abs(float((a * b).mean())) < 5 * float((a * b).std()) / a.numel() ** 0.5


def test_dtype() -> None:
    wide = SampleNoise(3).normal(REFS, (10,), dtype=torch.float64)
    narrow = SampleNoise(3).normal(REFS, (10,), dtype=torch.bfloat16)
    assert torch.equal(narrow, wide.to(torch.bfloat16))


def test_dropout_is_that_of_its_step_and_rank() -> None:
    def drops(step: int, rank: int) -> torch.Tensor:
        seed_step(5, step, rank)
        return torch.nn.functional.dropout(torch.ones(100), 0.5)

    with torch.random.fork_rng():
        assert torch.equal(drops(7, 0), drops(7, 0))
        assert not torch.equal(drops(7, 0), drops(8, 0))
        assert not torch.equal(drops(7, 0), drops(7, 1))
