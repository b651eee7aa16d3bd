"""Rival: FastAPI on uvicorn, what people write by hand. No batching, one model in each worker process.

POST /predict: {"inputs": …} → {"outputs": […]}; float32 bytes → float32 bytes for resnet18.
"""

from contextlib import asynccontextmanager

import bench_models
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response


@asynccontextmanager
async def load(app):
    app.state.runner = bench_models.Runner()
    yield


app = FastAPI(lifespan=load)


@app.post("/predict")
async def predict(request: Request):
    body = await request.body()
    runner = app.state.runner
    if request.headers.get("content-type") == bench_models.BINARY:
        return Response(runner.raw([bench_models.image_from_bytes(body)])[0], media_type=bench_models.BINARY)
    row = runner.rows([orjson.loads(body)["inputs"]])[0]
    return Response(orjson.dumps({"outputs": row}), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_server:app",
        host="127.0.0.1",
        port=bench_models.PORT,
        workers=bench_models.WORKERS,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
