"""Baseline: the forward inline in an aiohttp handler, one process for each worker on a shared port.

No product, but what our runtime builds on with nothing on top. POST /predict: {"inputs": …} → {"outputs": […]};
float32 bytes → float32 bytes for resnet18.
"""

import os

import bench_models
import orjson
import uvloop
from aiohttp import web


def make_app():
    runner = bench_models.Runner()

    async def predict(request):
        body = await request.read()
        if request.content_type == bench_models.BINARY:
            row = runner.raw([bench_models.image_from_bytes(body)])[0]
            return web.Response(body=row, content_type=bench_models.BINARY)
        row = runner.rows([orjson.loads(body)["inputs"]])[0]
        return web.Response(body=orjson.dumps({"outputs": row}), content_type="application/json")

    app = web.Application(client_max_size=64 * 1024**2)
    app.router.add_post("/predict", predict)
    return app


if __name__ == "__main__":
    for _ in range(bench_models.WORKERS - 1):
        if os.fork() == 0:
            break
    web.run_app(
        make_app(),
        host="127.0.0.1",
        port=bench_models.PORT,
        access_log=None,
        print=None,
        reuse_port=True,
        loop=uvloop.new_event_loop(),
    )
