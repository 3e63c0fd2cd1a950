"""Images to views: policies, data sets, collate, mixup."""
