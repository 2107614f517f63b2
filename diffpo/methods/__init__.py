"""Methods by name. A new one is a file here and a line in `METHODS`."""

from diffpo.methods.base import Method, PairwiseMethod, TwoSidedMethod
from diffpo.methods.cdpo import CDPO
from diffpo.methods.dcpo import DCPO
from diffpo.methods.densedpo import DenseDPO
from diffpo.methods.dmpo import DMPO
from diffpo.methods.dpo import DPO
from diffpo.methods.dspo import DSPO
from diffpo.methods.hinge import Hinge
from diffpo.methods.inpo import InPO
from diffpo.methods.ipo import IPO
from diffpo.methods.kto import KTO
from diffpo.methods.mapo import MaPO
from diffpo.methods.ppd import PPD
from diffpo.methods.rdpo import RDPO
from diffpo.methods.rpo import RPO
from diffpo.methods.sft import SFT
from diffpo.methods.smpo import SmPO

METHODS: dict[str, type[Method]] = {
    "dpo": DPO,
    "sft": SFT,
    "inpo": InPO,
    "smpo": SmPO,
    "dcpo": DCPO,
    "densedpo": DenseDPO,
    "ppd": PPD,
    "rpo": RPO,
    "mapo": MaPO,
    "kto": KTO,
    "ipo": IPO,
    "hinge": Hinge,
    "cdpo": CDPO,
    "rdpo": RDPO,
    "dspo": DSPO,
    "dmpo": DMPO,
}

__all__ = ["METHODS", "Method", "PairwiseMethod", "TwoSidedMethod"]
