"""Anthropic's Messages API: conversion of requests to chat completions, and of chat completions to messages. Pure."""
