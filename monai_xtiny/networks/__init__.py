"""From a plan and a width cap to a network and its cost.

This package alone knows what the networks are made of; whoever uses it takes the names below. Today
all are of one family, MONAI's DynUNet, and the names are what a family must have: to be built from
a plan and a cap (`build_network`), to be stated in a bundle's config (`network_definition`,
`network_from_config`), to be counted without being built (`network_cost`, `num_activations`), to
show what its head sees (`decoder_features`) and its encoder finds (`pooled_features`), to be told
in nnU-Net's words (`pair_tensor_names`), and to be packed for CPUs (`PackedNetwork`). A second
family is a file beside `dynunet.py`, a field of the plan that names it, and a branch in these
functions; the ladder and everything outside stay as they are.
"""

from __future__ import annotations

from monai_xtiny.system.lazy import lazy_names

_HOMES = {
    "width_ladder": "ladder",
    "cap_features": "ladder",
    "max_aligned_width": "ladder",
    "network_config": "dynunet",
    "network_definition": "dynunet",
    "network_from_config": "dynunet",
    "build_network": "dynunet",
    "MAX_PARAMETERS": "dynunet",
    "NetworkCost": "cost",
    "network_cost": "cost",
    "num_activations": "cost",
    "num_parameters_nnunet": "cost",
    "pair_tensor_names": "tensor_names",
    "PackedNetwork": "packed",
    "CHANNELS_LAST": "packed",
    "decoder_features": "features",
    "pooled_features": "features",
    "evaluated": "modes",
}
__getattr__ = lazy_names(__name__, _HOMES)
