"""An OpenAI-compatible gateway in front of a router: it reads little of a request, and forwards everything."""

from .app import api, application
from .errors import GatewayError
from .gateway import Gateway
from .limits import Limits, Timeouts
from .serving import Serving, served
from .settings import Settings

__all__ = ["Gateway", "GatewayError", "Limits", "Serving", "Settings", "Timeouts", "api", "application", "served"]
