"""Text to token ids and back: tokenizers, chat templates, incremental decoding.

Everything is read from the files of the checkpoint (`Tokenizer.from_folder`) or from the metadata
of a GGUF file (`Tokenizer.from_gguf`), on top of the `tokenizers` library.
"""

from assembler.tokenizer.chat_template import ChatTemplate
from assembler.tokenizer.detokenizer import Detokenizer
from assembler.tokenizer.stop_strings import StopStrings
from assembler.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "StopStrings", "Tokenizer"]
