"""What is trained of a base model, by the name of the config's `model` block."""

from diffpo.models.lora import LoRA
from diffpo.models.tuning import Full, Tuning
from diffpo.models.user import User

MODELS: dict[str, type[Tuning]] = {"full": Full, "lora": LoRA, "user": User}
