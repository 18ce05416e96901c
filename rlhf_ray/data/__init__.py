"""From files to tokens: reading, prompts, SFT examples, data order, packing into micro-batches."""
