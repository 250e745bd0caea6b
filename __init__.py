"""IR3DE: a linear router for domain-expert language models, on the Hugging Face Hub."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_ir3de import IR3DEConfig
    from .modeling_ir3de import IR3DEModel, IR3DEOutput
    from .pipeline_ir3de import IR3DERoutingPipeline
    from .second_opinion_ir3de import SecondOpinion
    from .statistics_ir3de import DomainStatistics

__version__ = "0.1.0"
__all__ = ["DomainStatistics", "IR3DEConfig", "IR3DEModel", "IR3DEOutput", "IR3DERoutingPipeline", "SecondOpinion"]

_HOMES = {
    "DomainStatistics": "statistics_ir3de",
    "IR3DEConfig": "configuration_ir3de",
    "IR3DEModel": "modeling_ir3de",
    "IR3DEOutput": "modeling_ir3de",
    "IR3DERoutingPipeline": "pipeline_ir3de",
    "SecondOpinion": "second_opinion_ir3de",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


class _EmbeddedRouter(dict[str, Any]):
    """What `pipeline("ir3de-routing")` loads where no model is named; it is built when first asked for."""

    def __getitem__(self, key: str) -> Any:
        from .scripts.fitting.embedded import build

        return (build(), None) if key == "model" else super().__getitem__(key)


def register() -> None:
    """Makes transformers know the router and its task; importing the package does it."""
    from transformers import AutoConfig, AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_ir3de import IR3DEConfig
    from .modeling_ir3de import IR3DEModel
    from .pipeline_ir3de import TASK

    AutoConfig.register(IR3DEConfig.model_type, IR3DEConfig, exist_ok=True)
    AutoModel.register(IR3DEConfig, IR3DEModel, exist_ok=True)
    PIPELINE_REGISTRY.supported_tasks[TASK]["default"] = _EmbeddedRouter(model=None)


def _is_the_command() -> bool:
    """Whether this process is the `ir3de` command."""
    return bool(sys.argv) and Path(sys.argv[0]).stem == "ir3de"


# It takes seconds, which the `ir3de` command should not take to print its help: it registers once it has work to do.
if not _is_the_command():
    register()
