"""What every process of Peerlane agrees on: settings, names, the Celery app, routing, the schedule.

Imports nothing of ours; both other packages import this one.
"""
