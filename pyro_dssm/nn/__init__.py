"""Networks: heads, combiners, memories of the past, encoders and decoders of images."""

from .gated import GatedTransition
from .images import ConvDecoder, ConvEncoder, check_image_shape, frame_decoder, frame_encoder
from .layers import MLP, Combiner, NormalHead, join, reverse, shift
from .layers import normal as normal
from .memories import Memories, MemoryOptions, States
from .memory import CELLS, Cell, Last, Memory, Recurrent

__all__ = [
    "CELLS",
    "Cell",
    "Combiner",
    "ConvDecoder",
    "ConvEncoder",
    "GatedTransition",
    "Last",
    "MLP",
    "Memories",
    "Memory",
    "MemoryOptions",
    "NormalHead",
    "Recurrent",
    "States",
    "check_image_shape",
    "frame_decoder",
    "frame_encoder",
    "join",
    "reverse",
    "shift",
]
