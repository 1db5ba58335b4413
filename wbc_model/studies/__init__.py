"""The harness behind `wbc benchmark`, which compares trainings: study file, runner, records, statistics, report and plots. It
imports all of `wbc_model` but `rendering`.
"""
