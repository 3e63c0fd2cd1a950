"""Meaning of timm's flags with two or more branches: flags that branches refuse, and notes for docs/flags.md.

A flag in neither table has the same meaning with branches as without.
"""
_NAFLEX = 'patches of many sizes form no view-major batch; train on images, of several sizes with --train-img-sizes'
_TEACHER = 'an external teacher teaches the logits of every branch; leave --kd-distill-type at logit'

# Flag -> reason why it contradicts branches, and the alternative.
REFUSED = {
    'no_aug': 'branches differ in nothing but augmentation; train with --a2aug-branches 1',
    'color_jitter': 'policies replace it; it is for branch 0 with --aa',
    'color_jitter_prob': 'policies replace it; it is for branch 0 with --aa',
    'aug_splits': 'each branch already sees a view of its own; leave it out',
    'jsd_loss': 'the ensemble already teaches all views; leave it out',
    'split_bn': 'each branch already has batch norm of its own; leave it out',
    'torchscript': 'a script cannot choose which branch answers; use --torchcompile',
    'worker_seeding': 'views are seeded by image, not by worker; leave it out',
    'use_multi_epochs_loader': 'it makes views before their epoch begins; leave it out, workers persist without it',
    **dict.fromkeys((
        'naflex_loader', 'naflex_train_seq_lens', 'naflex_max_seq_len', 'naflex_patch_sizes',
        'naflex_patch_size_probs', 'naflex_loss_scale', 'naflex_patchify_channels_first'), _NAFLEX),
    **dict.fromkeys((
        'kd_distill_type', 'kd_student_feature_dim', 'kd_teacher_feature_dim', 'kd_token_distill_type'), _TEACHER),
}

# Flag -> note for users of branches.
NOTES = {
    'aa': 'the policy of branch 0, with the color jitter that timm gives it; the other branches have none',
    'batch_size': 'images; a step computes N views of each',
    'lr_base_size': 'in images, not views',
    'initial_checkpoint': 'plain weights start all branches; a multi-branch checkpoint starts each with its own',
    'pretrained': 'starts all branches',
    'pretrained_path': 'starts all branches',
    'resume': 'model, classes, branches and policies are the checkpoint\'s',
    'num_classes': 'fixed by a resumed checkpoint',
    'grad_checkpointing': 'batch norm statistics move once per step, except with --a2aug-independent and '
                          '--a2aug-shared-bn; '
                          '--a2aug-sequential saves more memory, and both can be combined',
    'torchcompile': 'network and loss in one graph; evaluation compiles once per branch',
    'model_dtype': 'μ and the loss stay in float32',
    'amp': 'the loss stays in float32',
    'weight_decay': 'none for norms, biases and μ',
    'clip_grad': 'over the network and μ',
    'clip_mode': 'agc leaves the classifier and μ out',
    'layer_decay': 'a branch\'s norms are in the layer of the norm that they replace; μ is with the head',
    'grayscale_prob': 'after the policy, drawn per view',
    'gaussian_blur_prob': 'after the policy, drawn per view',
    'scale': 'one crop for all views; one per view with --a2aug-independent-crops',
    'hflip': 'one draw for all views; one per view with --a2aug-independent-crops',
    'vflip': 'one draw for all views; one per view with --a2aug-independent-crops',
    'aug_repeats': 'the views of every repeat are drawn anew',
    'bce_loss': 'for every branch and the ensemble',
    'smoothing': 'for every branch and the ensemble',
    'reprob': 'drawn per view',
    'resplit': 'the first view is not erased',
    'mixup': 'λ, box and partner are one draw for all views; soft targets in every loss term',
    'cutmix': 'as --mixup',
    'bn_momentum': 'of every branch',
    'bn_eps': 'of every branch',
    'sync_bn': 'over the ranks, one branch at a time',
    'dist_bn': 'of every branch',
    'model_ema': 'averages all branches and μ',
    'eval_metric': 'also chooses the best branch',
    'train_img_sizes': 'all views of a batch have one size',
    'save_images': 'N rows of views',
    'log_wandb': 'with one set of columns per branch',
    'kd_model_name': 'its loss is added for every branch, on the views of that branch at full size',
    'checkpoint_hist': 'each holds all branches',
    'tta': '0 or 1; more is refused, also without branches, since timm\'s loaders repeat no image',
    'holdout': 'branch and epoch are chosen on the images held out',
    'train_subset': 'taken from the images that a holdout leaves',
    'epochs': 'N views of each image per epoch',
}
