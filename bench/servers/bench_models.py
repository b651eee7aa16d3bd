"""The three models of the benchmark, and the one forward that every rival's server calls.

mlp: 10 → 64 → 64 → 1. resnet18: 3x224x224 → 1000 logits. encoder: 8 to 128 token ids → 4 logits. Weights are random and
seeded, so every server must give the same answers. Imported by the servers beside this file, by our own runtime
(`architecture.entrypoint`) and by `bare_torch.py`. Rivals take their settings from the environment:

  BENCH_WORKLOAD    mlp | resnet18 | encoder
  BENCH_PORT        HTTP port on 127.0.0.1
  BENCH_WORKERS     model worker processes
  BENCH_THREADS     torch intra-op threads of each worker
  BENCH_MAX_BATCH   rows in the largest dynamic batch, 1 switches batching off
  BENCH_DELAY_MS    how long a batch may wait to fill
"""

import os

import torch
import torch.nn.functional as F
from torch import nn

WORKLOAD = os.environ.get("BENCH_WORKLOAD", "mlp")
PORT = int(os.environ.get("BENCH_PORT", "8600"))
WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))
THREADS = int(os.environ.get("BENCH_THREADS", "1"))
MAX_BATCH = int(os.environ.get("BENCH_MAX_BATCH", "1"))
DELAY_MS = float(os.environ.get("BENCH_DELAY_MS", "0"))

IMAGE_SHAPE = (3, 224, 224)
VOCABULARY, MAX_TOKENS = 8192, 128
BINARY = "application/octet-stream"


class Mlp(nn.Sequential):
    """x (rows, 10) float32 → (rows, 1) float32."""

    def __init__(self):
        super().__init__(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a skip connection (He et al. 2015, figure 5, left)."""

    def __init__(self, channels_in, channels_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.down = None
        if stride != 1 or channels_in != channels_out:
            self.down = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x):
        skip = x if self.down is None else self.down(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + skip)


class ResNet18(nn.Module):
    """x (rows, 3, 224, 224) float32 → (rows, 1000) float32."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks, channels_in = [], 64
        for channels_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [BasicBlock(channels_in, channels_out, stride), BasicBlock(channels_out, channels_out, 1)]
            channels_in = channels_out
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, normalised first."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x, mask):
        rows, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.proj(attention.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """ids (rows, length) int64, keep (rows, length) bool, true on real tokens → (rows, 4) float32."""

    def __init__(self, width=256, layers=4, heads=4, hidden=1024, classes=4):
        super().__init__()
        self.tok, self.pos = nn.Embedding(VOCABULARY, width), nn.Embedding(MAX_TOKENS, width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, ids, keep=None):
        x = self.tok(ids) + self.pos.weight[: ids.shape[1]]
        mask = None if keep is None else keep[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        if keep is None:
            return self.head(x.mean(1))
        weight = keep.unsqueeze(-1).to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1))


CLASSES = {"mlp": Mlp, "resnet18": ResNet18, "encoder": Encoder}


def build(workload, threads):
    """The seeded module in eval mode; sets torch's intra-op threads for the process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return CLASSES[workload]().eval()


def collate(workload, items):
    """Single inputs (lists or tensors) as the positional arguments of one forward."""
    if workload == "encoder":
        lengths = [len(item) for item in items]
        longest = max(lengths)
        if min(lengths) == longest:
            return (torch.as_tensor(items, dtype=torch.int64),)
        ids = torch.tensor([list(item) + [0] * (longest - len(item)) for item in items], dtype=torch.int64)
        return ids, torch.arange(longest) < torch.tensor(lengths)[:, None]
    if isinstance(items[0], torch.Tensor):
        return (torch.stack(items),)
    return (torch.tensor(items, dtype=torch.float32),)


def image_from_bytes(raw):
    """Little-endian float32 bytes → a (3, 224, 224) tensor; copies only what cannot be written to."""
    return torch.frombuffer(bytearray(raw) if isinstance(raw, bytes) else raw, dtype=torch.float32).view(IMAGE_SHAPE)


class Runner:
    """What a rival's worker holds: a list of single inputs in, one row for each out."""

    def __init__(self, workload=WORKLOAD, threads=THREADS):
        self.workload = workload
        self.model = build(workload, threads)

    def tensor(self, items):
        """(rows, outputs) float32."""
        with torch.inference_mode():
            return self.model(*collate(self.workload, items))

    def rows(self, items):
        """Rows as lists of floats, for JSON."""
        return self.tensor(items).tolist()

    def raw(self, items):
        """Rows as float32 bytes, for binary answers."""
        return [row.tobytes() for row in self.tensor(items).numpy()]
