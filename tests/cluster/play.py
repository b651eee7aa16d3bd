"""`make cluster`: the test cluster with the operator and the examples' checkpoints in it; says what to type next."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # let `cluster` mean this folder, as it does in the tests

from cluster import images  # noqa: E402
from cluster.cluster import ClusterError, up  # noqa: E402
from testkit.scenario import image_values, prepare_examples, start_store  # noqa: E402

NEXT = """
A Kubernetes node is up, with the operator in namespace torchmodel-system and an S3 server with the examples' checkpoints.

  tm() {{ {python} tests/cluster/cluster.py "$@"; }}     # kubectl, helm, run COMMAND, or sh: a shell inside its network
  tm kubectl explain torchmodel.spec.checkpoint
  sed 's#uri: file:model.pth#uri: s3://models/linear/model.pth\\n    credentials: {{secretName: s3-read}}#' \\
    examples/linear/torchmodel.yaml | tm kubectl apply -f -
  tm kubectl wait --for=condition=Ready torchmodel/linear --timeout=5m
  tm kubectl describe tm linear
  tm run {python} examples/linear/compare.py --url "http://$(tm kubectl get svc linear -o jsonpath='{{.spec.clusterIP}}')"

Example (b)'s class is in the image {efficientnet}.
`make cluster-down` ends it all.
"""


def main() -> None:
    """Build the images, start the cluster, install the operator, fill the store."""
    prepare_examples()
    built = images.build_all()
    cluster = up()
    cluster.install_operator(image_values(built) | {"allowCodeExecution": True})
    start_store(cluster, Path(tempfile.mkdtemp(prefix="store-", dir=cluster.folder)), "default")
    print(NEXT.format(python=sys.executable, efficientnet=built["efficientnet"]))


if __name__ == "__main__":
    try:
        main()
    except ClusterError as error:
        sys.exit(str(error))
