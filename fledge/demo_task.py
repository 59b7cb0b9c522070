"""The demo's task under the name that stands in the folders of earlier demos: `fledge.demo_task:trainer`."""

from fledge.demo.task import trainer

__all__ = ["trainer"]
