"""An OpenAI-compatible gateway in front of a router: it reads little of a request, and forwards everything."""
