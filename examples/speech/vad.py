"""The 16 kHz network of Silero VAD (package silero-vad 6.2) as plain PyTorch.

Its names are those of the package's `silero_vad_16k.safetensors`. That file and the package's `silero_vad.jit` hold two
different trainings of the same network; with either one's weights this module computes what that one computes
(tests/service compares it with the TorchScript model). A window of 512 samples is seen together with the 64 before it; an
LSTM carries what was heard along the recording.
"""

import torch
from torch import nn

WINDOW = 512
CONTEXT = 64
BINS = 129  # of a Fourier transform of 256 samples


class SileroVad(nn.Module):
    """Waveforms `(rows, samples)` at 16 kHz to speech probabilities `(rows, windows)`, one for 512 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * BINS, kernel_size=256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(BINS, 128, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, kernel_size=3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, kernel_size=3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, kernel_size=3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, kernel_size=1)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        rows, samples = waveform.shape
        silence = waveform.new_zeros(rows, CONTEXT)
        padded = torch.cat([silence, waveform, waveform.new_zeros(rows, -samples % WINDOW)], dim=1)
        windows = padded.unfold(1, CONTEXT + WINDOW, WINDOW)  # (rows, windows, 576)
        features = self.encode(windows.reshape(-1, CONTEXT + WINDOW)).view(rows, -1, 128)
        hidden = cell = waveform.new_zeros(rows, 128)
        heard = []
        for window in features.unbind(dim=1):
            hidden, cell = self.lstm_cell(window, (hidden, cell))
            heard.append(hidden)
        logits = self.final_conv(torch.stack(heard, dim=2).relu())  # (rows, 1, windows)
        return torch.sigmoid(logits).squeeze(1)

    def encode(self, windows: torch.Tensor) -> torch.Tensor:
        """Windows with context `(n, 576)` to features `(n, 128)`; every window by itself."""
        mirrored = nn.functional.pad(windows.unsqueeze(1), (0, 64), mode="reflect")
        real, imaginary = self.stft_conv(mirrored).split(BINS, dim=1)
        x = torch.sqrt(real**2 + imaginary**2)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = torch.relu(layer(x))
        return x.squeeze(-1)
