"""The services, a process each. What they import is made of objects that stay, and so are the batches they handle."""

import gc

# Here, because nothing else runs before the imports. At the default of 700 the collector looks for cycles all the time:
# among what is imported, which takes a fifteenth of the start, and among the 10,000 objects of a batch of 500 events,
# which takes a seventh of the CPU. Leaked cycles now wait for some hundred batches.
gc.set_threshold(50_000, 20, 100)
