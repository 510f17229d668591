"""`python -m tokenizer_build EVENTS --output DIR`: an event log to tokenizer files.

From Python it is `next_behavior.training.vocabulary.build_tokenizer`.
"""
