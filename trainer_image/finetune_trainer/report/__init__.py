"""Write what people read about a run: ``report.html``, the model card and TensorBoard's files.

Charts, tables and pages are pure functions from values to text; only ``assemble`` reads a model. Nothing is uploaded.
"""
