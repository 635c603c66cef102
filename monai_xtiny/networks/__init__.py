"""From a plan and a width cap to a network and its cost."""

from __future__ import annotations

from monai_xtiny.system.lazy import lazy_names

_HOMES = {
    "width_ladder": "ladder",
    "cap_features": "ladder",
    "network_config": "dynunet",
    "build_network": "dynunet",
    "NetworkCost": "cost",
    "network_cost": "cost",
    "num_activations": "cost",
    "num_parameters_nnunet": "cost",
    "PackedNetwork": "packed",
}
__getattr__ = lazy_names(__name__, _HOMES)
