"""The command line ``finetune``, also ``kubectl finetune``: what a person or a script does with both kinds, beside kubectl."""
