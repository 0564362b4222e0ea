"""Speech: recordings, spectra, resynthesis, scores."""

from .audio import Spectrogram, griffin_lim, read_audio, write_audio
from .metrics import METRICS, Scores, estoi, pesq, score_speech, si_sdr
from .recordings import Recording, SpeechDataset, SpeechSplits, find_recordings, load_recordings, load_speech
from .resynthesis import continue_speech, fill_gaps, generate_speech, hidden_frames, resynthesise, to_wave

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
