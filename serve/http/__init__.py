"""Answers over HTTP: bundles in, a server out. Needs the extra `http`: starlette and uvicorn."""
