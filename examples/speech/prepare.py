"""Put the Silero voice activity model as model.safetensors beside this file, and speak speech.wav with espeak-ng.

The weights come inside the PyPI package silero-vad; the voice is Debian's espeak-ng. speech.wav holds two sentences with
a pause between them, at the 16 kHz the model expects, so that its answer can be compared number by number. (The server
takes other rates too, and resamples them.)
"""

import io
import shutil
import subprocess
from importlib.util import find_spec
from math import gcd
from pathlib import Path

import soundfile
from scipy.signal import resample_poly

HERE = Path(__file__).parent
RATE_HERTZ = 16000
TEXT = (
    "Apply a torch model, and get a verified endpoint. "
    '<break time="1500ms"/> This sentence comes after a pause, and then there is silence. <break time="800ms"/>'
)


def speak(text: str) -> bytes:
    """espeak-ng's wav file for a text with SSML marks."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is missing; install it: apt-get install espeak-ng")
    command = ["espeak-ng", "-m", "-v", "en-us", "--stdout", text]
    return subprocess.run(command, check=True, capture_output=True).stdout


if __name__ == "__main__":
    package = find_spec("silero_vad")
    if package is None or package.origin is None:
        raise SystemExit(
            "the package silero-vad is missing; install the examples: pip install 'torchmodel-operator[examples]'"
        )
    shutil.copyfile(Path(package.origin).parent / "data" / "silero_vad_16k.safetensors", HERE / "model.safetensors")
    samples, rate_hertz = soundfile.read(io.BytesIO(speak(TEXT)), dtype="float32")
    divisor = gcd(rate_hertz, RATE_HERTZ)
    resampled = resample_poly(samples, RATE_HERTZ // divisor, rate_hertz // divisor)
    soundfile.write(HERE / "speech.wav", resampled, RATE_HERTZ, subtype="PCM_16")
    print(f"wrote model.safetensors and speech.wav ({len(resampled) / RATE_HERTZ:.1f} s)")
