"""What a run leaves on disk, and reading it back.

``save_trainable``/``load_trainable`` serve training checkpoints (what trains, exactly);
``save_artefact``/``load_artefact`` the one folder from which a model is used; ``load_lora`` and
``load_bottleneck`` start a run from somebody's adapters. Nothing is ever unpickled.
"""

from adalora.adapters.trainable import load_trainable, save_trainable, trainable_state
from adalora.artefact.base_encoder import BaseEncoder
from adalora.artefact.description import Description, Origin, read_description
from adalora.artefact.reader import Artefact, load_artefact
from adalora.artefact.stored import find_artefact
from adalora.artefact.warm_start import WarmStart, load_bottleneck, load_lora
from adalora.artefact.writer import save_artefact

__all__ = [
    "Artefact",
    "BaseEncoder",
    "Description",
    "Origin",
    "WarmStart",
    "find_artefact",
    "load_artefact",
    "load_bottleneck",
    "load_lora",
    "load_trainable",
    "read_description",
    "save_artefact",
    "save_trainable",
    "trainable_state",
]
