"""What takes seconds and is the same in every process of `crash_world`: imported once, by the parent of all.

An epsilon that is paid in each round, with seeded noise so that it is the same in each run.
"""

import gc
import importlib

from tacit import config
from tacit.privacy.plan import PrivacyPlan

WANTED = (
    "server.app",
    "client.agent",
    "client.private_gradients",
    "client.bookkeeping",
    "tacit.tasks.tabular",
)
for name in (*WANTED, "spool", "torch._dynamo"):  # the last would be imported by the first step of training
    importlib.import_module(name)

NUM_SITES, SHORT = 4, 14  # rounds of a short private run: one for each point, and one to end with
EXPERIMENT = f"""
name = "crashing"
[partition]
num_clients = {NUM_SITES}
[task.model]
name = "logistic"
[training]
rounds = {SHORT}
local_steps = 1
sampling_rate = 0.5
learning_rate = 0.5
[secure_aggregation]
max_dropouts = 1
deadline_seconds = 6.0
[simulation]
baselines = false
"""
PRIVATE = ("privacy.record={epsilon=20.0, delta=1e-5, reserve=3.0}", "insecure_seeded_noise=true")
PLAN = PrivacyPlan.of(config.loads(EXPERIMENT, overrides=PRIVATE))  # is remembered
gc.collect()
gc.freeze()  # else a collection in a child would look at all of it, and copy it
