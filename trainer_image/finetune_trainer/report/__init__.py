"""Write what people read about a run: ``report.html``, the model card and TensorBoard's files.

Charts, tables and pages are pure (values in, text out); only ``assemble`` looks at a model. It uploads nothing.
"""
