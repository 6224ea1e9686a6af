"""What `assembler.show` draws from: a model as a picture, in a terminal, a page or a figure."""
