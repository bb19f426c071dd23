"""The sampler against diffusers' DDIM, and the trailing timestep that one step depends on."""

import pytest
import torch
from diffusers import DDIMScheduler

from digseg_engine.errors import UsageError
from digseg_engine.model.sampler import Schedule, ddim_weights, sample, trailing_timesteps

SCHEDULE = Schedule.zero_terminal_snr()


def test_terminal_snr_is_zero_and_the_start_is_unchanged():
    assert SCHEDULE.alpha_bar[-1] == 0
    assert abs(float(SCHEDULE.alpha_bar[0]) - (1 - 0.00085)) < 1e-12
    assert (SCHEDULE.alpha_bar.diff() < 0).all()


@pytest.mark.parametrize(("steps", "wanted"), [(1, [999]), (2, [999, 499]), (4, [999, 749, 499, 249])])
def test_timesteps_are_trailing(steps, wanted):
    assert trailing_timesteps(steps) == wanted


def test_step_counts_outside_the_schedule_are_refused():
    for steps in (0, -1, 1001):
        with pytest.raises(UsageError, match="1 to 1000"):
            trailing_timesteps(steps)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_sample_equals_diffusers_ddim(steps):
    torch.manual_seed(0)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip
    z, noise = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)

    def denoise(both, t):
        return torch.tanh(both[:, :4] + 0.5 * both[:, 4:]) * (1 + t.view(-1, 1, 1, 1) / 1000)

    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == trailing_timesteps(steps)
    m = noise
    for t in scheduler.timesteps:
        m = scheduler.step(denoise(torch.cat([z, m], 1), t.expand(2)), t, m).prev_sample
    assert (sample(denoise, z, SCHEDULE, steps, noise) - m).abs().max() < 2e-4


def test_one_step_from_zeros_is_minus_v():
    z = torch.randn(1, 4, 2, 2)
    got = sample(lambda both, t: both[:, :4] * 2 + both[:, 4:], z, SCHEDULE, 1)
    assert torch.allclose(got, -2 * z, atol=1e-6)
    assert ddim_weights(SCHEDULE, 999, None) == (0.0, -1.0)


def test_prompts_of_one_picture_are_sampled_together():
    torch.manual_seed(0)
    z, noise = torch.randn(2, 4, 3, 5), torch.randn(6, 4, 3, 5)
    got = sample(lambda both, t: both[:, :4] - 0.3 * both[:, 4:], z, SCHEDULE, 4, noise, prompts=3)
    for b in range(2):
        for k in range(3):
            row = b * 3 + k
            alone = sample(
                lambda both, t: both[:, :4] - 0.3 * both[:, 4:], z[b : b + 1], SCHEDULE, 4, noise[row : row + 1]
            )
            assert torch.allclose(got[row], alone[0], atol=1e-5)


def test_velocity_inverts_to_the_clean_latent():
    torch.manual_seed(0)
    clean, noise, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    noisy = SCHEDULE.add_noise(clean, noise, t)
    assert torch.allclose(SCHEDULE.clean(noisy, SCHEDULE.velocity(clean, noise, t), t), clean, atol=1e-5)
