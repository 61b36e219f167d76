"""OFA, the unified vision-language model (Wang et al. 2022, arXiv:2202.03052): `from exitwise.models.ofa import ...`.

Importing this registers the model with the Auto classes of `transformers`.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, AutoProcessor

from .checkpoint import CheckpointReport, convert_checkpoint, load_checkpoint
from .configuration import OFAConfig
from .decoder import OFADecoder
from .encoder import OFAEncoder, OFAEncoderOutput
from .layers import OFADecoderLayer, OFAEncoderLayer
from .modeling import OFAForConditionalGeneration, OFAModel
from .processing import OFAProcessor
from .reading import is_checkpoint
from .stem import Lite0, ResNetTrunk, Stem, load_lite0
from .tokenizer import train_tokenizer
from .trie import Trie
from .vocabulary import load_tokenizer

AutoConfig.register("ofa", OFAConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(OFAConfig, OFAForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(OFAConfig, OFAForConditionalGeneration, exist_ok=True)
AutoProcessor.register(OFAConfig, OFAProcessor, exist_ok=True)

__all__ = [
    "CheckpointReport",
    "Lite0",
    "OFAConfig",
    "OFADecoder",
    "OFADecoderLayer",
    "OFAEncoder",
    "OFAEncoderLayer",
    "OFAEncoderOutput",
    "OFAForConditionalGeneration",
    "OFAModel",
    "OFAProcessor",
    "ResNetTrunk",
    "Stem",
    "Trie",
    "convert_checkpoint",
    "is_checkpoint",
    "load_checkpoint",
    "load_lite0",
    "load_tokenizer",
    "train_tokenizer",
]
