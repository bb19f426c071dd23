"""`digseg serve`: the engine behind HTTP, and a page to try it on. FastAPI and uvicorn; extra `[serve]`."""
