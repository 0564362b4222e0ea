"""Speech: recordings, spectra, resynthesis, scores."""

from .audio import read_audio, write_audio
from .completion import continue_speech, fill_gaps, hidden_frames
from .datasets import SpeechDataset, SpeechSplits
from .loading import load_recordings, load_speech
from .metrics import estoi, pesq, si_sdr
from .recordings import Recording, find_recordings
from .resynthesis import generate_speech, resynthesise, to_wave
from .scores import METRICS, Scores, score_speech
from .spectrogram import Spectrogram, griffin_lim

__all__ = [
    "METRICS",
    "Recording",
    "Scores",
    "Spectrogram",
    "SpeechDataset",
    "SpeechSplits",
    "continue_speech",
    "estoi",
    "fill_gaps",
    "find_recordings",
    "generate_speech",
    "griffin_lim",
    "hidden_frames",
    "load_recordings",
    "load_speech",
    "pesq",
    "read_audio",
    "resynthesise",
    "score_speech",
    "si_sdr",
    "to_wave",
    "write_audio",
]
