"""Train `nn.Linear(10, 1)` on a known rule and save its state_dict as model.pth beside this file.

The rule is y = 0.1·x₀ + 0.2·x₁ + … + 1.0·x₉ + 0.5 with a little noise, so you can judge a prediction by eye.
"""

from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent


def train() -> nn.Linear:
    """Mean squared error, Adam with a learning rate of 0.01, a thousand steps over all samples."""
    torch.manual_seed(0)
    x = torch.randn(1000, 10)
    y = x @ torch.linspace(0.1, 1.0, 10).unsqueeze(1) + 0.5 + 0.01 * torch.randn(1000, 1)

    model = nn.Linear(10, 1)
    loss_function = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(1001):
        optimizer.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        optimizer.step()
        if step % 250 == 0:
            print(f"step {step}: loss {loss.item():.5f}")
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), HERE / "model.pth")
    print("saved model.pth")
