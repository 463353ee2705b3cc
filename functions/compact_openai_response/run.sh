#!/bin/sh
# Lambda Web Adapter is the handler; it starts this once and passes every invocation on over HTTP.
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}/opt/python${LAMBDA_RUNTIME_DIR:+:$LAMBDA_RUNTIME_DIR}"
# Standard output is a pipe here, in which Python would keep metrics back while the sandbox is frozen or ends.
export PYTHONUNBUFFERED=1
exec python -m uvicorn handler:app --host 127.0.0.1 --port "$AWS_LWA_PORT" --no-access-log
