"""What a run leaves for people beside its adapter: a report to look at, and a model card. Pure: values in, text out."""
