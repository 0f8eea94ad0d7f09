"""What connectors to engines have in common; nothing here knows an engine.

A connector has two sides, which may live in two processes. The scheduler's asks what is stored and plans each step:
:class:`~infer_accel.integrations._connector.scheduler.SchedulerSide`. The worker's moves pages between the engine's
memory and the tier: :class:`~infer_accel.integrations._connector.worker.WorkerSide`.
"""
