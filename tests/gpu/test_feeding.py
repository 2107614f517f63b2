"""Encoding several rows together on a GPU, and what happens where its memory is full."""

from __future__ import annotations

import pytest
import torch
from cards import DEVICE, needs_card

pytestmark = pytest.mark.gpu


@pytest.fixture
def whole_float32(monkeypatch):
    """Convolutions in float32: TF32, torch's default on a card, keeps ten bits of what goes in."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("whole_float32")
def test_rows_encoded_together_agree_with_each_alone(world):
    """To 1e-4, as the documentation says; two batches are on their way at once."""
    from diffpo.models.encoders import Encoders
    from diffpo.models.lora import LoRA

    encoders = Encoders(LoRA(path=str(world.folder / "sd15")), DEVICE)
    draws = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 1, 64, 64), generator=draws, dtype=torch.uint8) for _ in range(7)]
    first, second = encoders.start_media(images[:4]), encoders.start_media(images[4:])
    for together, image in zip([*first(), *second()], images, strict=True):
        for ours, alone in zip(together, encoders.encode_media(image), strict=True):
            assert ours.device.type == "cpu"
            torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-4 * float(alone.std()) + 1e-6)
    prompts = ["thing 1", "", "thing 2 " * 9]
    for together, prompt in zip(encoders.encode_prompts(prompts), prompts, strict=True):
        torch.testing.assert_close(together["text"], encoders.encode_prompt(prompt)["text"], rtol=1e-4, atol=1e-4)


@needs_card
def test_half_as_many_rows_are_tried_where_memory_is_full():
    """Each row asks for a third of what is free: two fit, and what the failed try held is free again."""
    from diffpo.models.fitting import Fitting

    torch.cuda.empty_cache()
    size = torch.cuda.mem_get_info()[0] // 3

    def work(rows):
        held = [torch.empty(size, dtype=torch.uint8, device=DEVICE) for _ in rows]
        return [len(held)] * len(rows)

    fitting = Fitting(8)
    assert fitting.run(work, range(6)) == [2] * 6 and fitting.most == 2
