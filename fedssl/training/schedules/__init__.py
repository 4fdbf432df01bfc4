"""Schedules of the learning rate, one module each; ``train.schedule`` names one."""

from fedssl.training.schedules.base import SCHEDULES, Schedule

__all__ = ["SCHEDULES", "Schedule"]
