"""Join the processes of a training to a group, and give each its own random numbers.

It knows neither the model nor the dataset; in a training of one process its functions do nothing.
"""
