"""Where the tests on a GPU run: on a card, or, rehearsed, on a CPU."""

import pytest
import torch

REHEARSED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if REHEARSED else "cuda")
needs_card = pytest.mark.skipif(REHEARSED, reason="rehearsed on a CPU, which cannot do it")
