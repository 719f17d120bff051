"""Several processes that train together: their process group, and the random numbers of each.

It knows neither the model nor the dataset; in a training of one process its functions do nothing.
"""
