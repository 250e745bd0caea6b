"""IR3DE: a linear router for domain-expert language models, on the Hugging Face Hub."""

from typing import Any

from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_ir3de import IR3DEConfig
from .modeling_ir3de import IR3DEModel, IR3DEOutput
from .pipeline_ir3de import TASK, IR3DERoutingPipeline
from .second_opinion_ir3de import SecondOpinion
from .statistics_ir3de import DomainStatistics

__version__ = "0.1.0"
__all__ = ["DomainStatistics", "IR3DEConfig", "IR3DEModel", "IR3DEOutput", "IR3DERoutingPipeline", "SecondOpinion"]


class _EmbeddedRouter(dict[str, Any]):
    """What `pipeline("ir3de-routing")` loads where no model is named; it is built when first asked for."""

    def __getitem__(self, key: str) -> Any:
        from .scripts.quickstart import build

        return (build(), None) if key == "model" else super().__getitem__(key)


AutoConfig.register(IR3DEConfig.model_type, IR3DEConfig)
AutoModel.register(IR3DEConfig, IR3DEModel)
PIPELINE_REGISTRY.supported_tasks[TASK]["default"] = _EmbeddedRouter(model=None)
