# The mesh payments on Amazon ECS. Written by `countersign generate terraform`; do not edit, write it again.
# Each secret is read by its own service (its task role)
# and by the rotation. docs/ecs.md says what is where, and why.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = { source = "hashicorp/aws", version = ">= 6.0" }
  }
}

variable "region" {
  type        = string
  description = "The region, the provider's."
}

variable "vpc_id" {
  type        = string
  description = "The VPC."
}

variable "subnet_ids" {
  type        = list(string)
  description = "Private subnets of it, from which the endpoints of AWS can be reached."
}

variable "aws_api_cidr" {
  type        = string
  description = "Where tasks and the rotation reach the endpoints of AWS, on port 443. Narrow it to the VPC when it has interface endpoints."
  default     = "0.0.0.0/0"
}

variable "client_cidr" {
  type        = string
  description = "Whose connections the gateways accept."
  default     = "10.0.0.0/8"
}

variable "countersign_image" {
  type        = string
  description = "The image of countersign, best with its digest."
}

variable "haproxy_image" {
  type        = string
  description = "The image of haproxy, with a bash for its health check."
}

variable "nginx_image" {
  type        = string
  description = "The image of nginx, with a bash for its health check."
}

variable "nginx_stream_module" {
  type        = string
  description = "The file of NGINX's stream module; none where it is compiled in, as in NGINX's own image."
  default     = "none"
}

variable "checkout_image" {
  type        = string
  description = "The image of the application of checkout."
}

variable "checkout_health_check" {
  type        = list(string)
  description = "The command that finds the application of checkout healthy."
  default     = ["CMD", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/18081"]
}

variable "ledger_image" {
  type        = string
  description = "The image of the application of ledger."
}

variable "ledger_health_check" {
  type        = list(string)
  description = "The command that finds the application of ledger healthy."
  default     = ["CMD", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/19000"]
}

variable "terminal_image" {
  type        = string
  description = "The image of the application of terminal."
}

variable "terminal_health_check" {
  type        = list(string)
  description = "The command that finds the application of terminal healthy."
  default     = ["CMD", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/17000"]
}

variable "image_repositories" {
  type        = list(string)
  description = "The ECR repositories of these images, by ARN, without wildcards."
  validation {
    condition     = alltrue([for arn in var.image_repositories : can(regex("^arn:[^*?]+:repository/[^*?]+$", arn))])
    error_message = "Each has to be the ARN of one repository."
  }
}

variable "architecture" {
  type        = string
  description = "The processors of tasks and rotation: X86_64 or ARM64."
  default     = "X86_64"
  validation {
    condition     = contains(["X86_64", "ARM64"], var.architecture)
    error_message = "Write X86_64 or ARM64."
  }
}

variable "task_cpu" {
  type        = number
  description = "CPU units of a task, for application and proxy together."
  default     = 512
}

variable "task_memory" {
  type        = number
  description = "MiB of a task."
  default     = 1024
}

variable "desired_count" {
  type        = number
  description = "Tasks of each service. 0 until the first rotation has filled the secrets."
  default     = 0
}

variable "function_bucket" {
  type        = string
  description = "The S3 bucket with the package that 'countersign rotate package' wrote."
}

variable "function_key" {
  type        = string
  description = "The package's key there."
}

variable "alarm_topic" {
  type        = string
  description = "The SNS topic that gets the alarms, by ARN."
}

data "aws_partition" "current" {
}

data "aws_caller_identity" "current" {
}

locals {
  partition = data.aws_partition.current.partition
  account   = data.aws_caller_identity.current.account_id
}

# Keys: one for the secrets of each store, one for the logs

resource "aws_kms_key" "vault" {
  description         = "The secrets of the mesh payments in the store vault"
  enable_key_rotation = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      # In the policy of a key, * is this key. Who administers it cannot use it; who gives himself the right to, by
      # kms:PutKeyPolicy, is seen in CloudTrail.
      {
        Sid       = "AdministerWithoutUse"
        Effect    = "Allow"
        Principal = { AWS = "arn:${local.partition}:iam::${local.account}:root" }
        Action = [
          "kms:CancelKeyDeletion", "kms:CreateAlias", "kms:DeleteAlias", "kms:DescribeKey", "kms:DisableKey",
          "kms:EnableKey", "kms:EnableKeyRotation", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListGrants",
          "kms:ListKeyPolicies", "kms:ListResourceTags", "kms:PutKeyPolicy", "kms:RevokeGrant",
          "kms:ScheduleKeyDeletion", "kms:TagResource", "kms:UntagResource", "kms:UpdateAlias",
          "kms:UpdateKeyDescription",
        ]
        Resource = "*"
      },
      # Only these roles, only through Secrets Manager, and only what their own policies name.
      {
        Sid       = "DecryptForItsRoles"
        Effect    = "Allow"
        Principal = { AWS = "arn:${local.partition}:iam::${local.account}:root" }
        Action    = ["kms:Decrypt"]
        Resource  = "*"
        Condition = {
          StringEquals = { "kms:ViaService" = "secretsmanager.${var.region}.amazonaws.com" }
          ArnEquals = {
            "aws:PrincipalArn" = [
              aws_iam_role.payments_rotation.arn, aws_iam_role.payments_checkout_task.arn,
              aws_iam_role.payments_ledger_task.arn, aws_iam_role.payments_paygate_task.arn,
              aws_iam_role.payments_terminal_task.arn,
            ]
          }
        }
      },
      # Who may write a secret may have it encrypted; this stack does so for the first values.
      {
        Sid       = "EncryptBySecretsManager"
        Effect    = "Allow"
        Principal = { AWS = "arn:${local.partition}:iam::${local.account}:root" }
        Action    = ["kms:GenerateDataKey"]
        Resource  = "*"
        Condition = { StringEquals = { "kms:ViaService" = "secretsmanager.${var.region}.amazonaws.com" } }
      },
      # Secrets Manager decrypts a sample, and no secret, when a secret is made with the key.
      {
        Sid       = "TryTheKey"
        Effect    = "Allow"
        Principal = { AWS = "arn:${local.partition}:iam::${local.account}:root" }
        Action    = ["kms:Decrypt"]
        Resource  = "*"
        Condition = {
          StringEquals = {
            "kms:ViaService"                        = "secretsmanager.${var.region}.amazonaws.com"
            "kms:EncryptionContext:SecretVersionId" = "RequestToValidateKeyAccess"
          }
        }
      },
    ]
  })
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "vault" {
  name          = "alias/payments-vault"
  target_key_id = aws_kms_key.vault.key_id
}

resource "aws_kms_key" "countersign_logs" {
  description         = "The logs of the mesh payments"
  enable_key_rotation = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      # In the policy of a key, * is this key. Who administers it cannot use it; who gives himself the right to, by
      # kms:PutKeyPolicy, is seen in CloudTrail.
      {
        Sid       = "AdministerWithoutUse"
        Effect    = "Allow"
        Principal = { AWS = "arn:${local.partition}:iam::${local.account}:root" }
        Action = [
          "kms:CancelKeyDeletion", "kms:CreateAlias", "kms:DeleteAlias", "kms:DescribeKey", "kms:DisableKey",
          "kms:EnableKey", "kms:EnableKeyRotation", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListGrants",
          "kms:ListKeyPolicies", "kms:ListResourceTags", "kms:PutKeyPolicy", "kms:RevokeGrant",
          "kms:ScheduleKeyDeletion", "kms:TagResource", "kms:UntagResource", "kms:UpdateAlias",
          "kms:UpdateKeyDescription",
        ]
        Resource = "*"
      },
      {
        Sid       = "EncryptTheLogs"
        Effect    = "Allow"
        Principal = { Service = "logs.${var.region}.amazonaws.com" }
        Action = [
          "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo",
        ]
        Resource = "*"
        Condition = {
          ArnEquals = {
            "kms:EncryptionContext:aws:logs:arn" = [
              "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/aws/lambda/payments-rotation",
              "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/countersign/payments/checkout",
              "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/countersign/payments/ledger",
              "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/countersign/payments/paygate",
              "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/countersign/payments/terminal",
            ]
          }
        }
      },
    ]
  })
  lifecycle {
    prevent_destroy = true
  }
}

# Roles: for each service one for its containers and one for ECS, and that of the rotation

# The containers of checkout.
resource "aws_iam_role" "payments_checkout_task" {
  name = "payments-checkout-task"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Assume"
        Effect    = "Allow"
        Principal = { Service = "ecs-tasks.amazonaws.com" }
        Action    = ["sts:AssumeRole"]
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      },
    ]
  })
}

resource "aws_iam_role_policy" "payments_checkout_task" {
  name = "payments-checkout-task"
  role = aws_iam_role.payments_checkout_task.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "ReadItsSecrets"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue"]
        Resource = [aws_secretsmanager_secret.checkout.arn, aws_secretsmanager_secret.bundle.arn]
      },
      {
        Sid      = "DecryptThem"
        Effect   = "Allow"
        Action   = ["kms:Decrypt"]
        Resource = aws_kms_key.vault.arn
        Condition = {
          StringEquals = {
            "kms:ViaService"                  = "secretsmanager.${var.region}.amazonaws.com"
            "kms:EncryptionContext:SecretARN" = [aws_secretsmanager_secret.checkout.arn, aws_secretsmanager_secret.bundle.arn]
          }
        }
      },
    ]
  })
}

# ECS, when it starts a task of checkout.
resource "aws_iam_role" "payments_checkout_execution" {
  name = "payments-checkout-execution"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Assume"
        Effect    = "Allow"
        Principal = { Service = "ecs-tasks.amazonaws.com" }
        Action    = ["sts:AssumeRole"]
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      },
    ]
  })
}

resource "aws_iam_role_policy" "payments_checkout_execution" {
  name = "payments-checkout-execution"
  role = aws_iam_role.payments_checkout_execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "PullImages"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = var.image_repositories
      },
      # A wildcard, because the token is for no single repository; the statement above says which can be pulled.
      {
        Sid      = "LogInToRegistry"
        Effect   = "Allow"
        Action   = ["ecr:GetAuthorizationToken"]
        Resource = "*"
      },
      # A wildcard, because the names of log streams are made by AWS.
      {
        Sid      = "WriteItsLog"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/countersign/payments/checkout:*"
      },
    ]
  })
}

# The containers of ledger.
resource "aws_iam_role" "payments_ledger_task" {
  name = "payments-ledger-task"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Assume"
        Effect    = "Allow"
        Principal = { Service = "ecs-tasks.amazonaws.com" }
        Action    = ["sts:AssumeRole"]
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      },
    ]
  })
}

resource "aws_iam_role_policy" "payments_ledger_task" {
  name = "payments-ledger-task"
  role = aws_iam_role.payments_ledger_task.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "ReadItsSecrets"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue"]
        Resource = [aws_secretsmanager_secret.ledger.arn, aws_secretsmanager_secret.bundle.arn]
      },
      {
        Sid      = "DecryptThem"
        Effect   = "Allow"
        Action   = ["kms:Decrypt"]
        Resource = aws_kms_key.vault.arn
        Condition = {
          StringEquals = {
            "kms:ViaService"                  = "secretsmanager.${var.region}.amazonaws.com"
            "kms:EncryptionContext:SecretARN" = [aws_secretsmanager_secret.ledger.arn, aws_secretsmanager_secret.bundle.arn]
          }
        }
      },
    ]
  })
}

# ECS, when it starts a task of ledger.
resource "aws_iam_role" "payments_ledger_execution" {
  name = "payments-ledger-execution"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Assume"
        Effect    = "Allow"
        Principal = { Service = "ecs-tasks.amazonaws.com" }
        Action    = ["sts:AssumeRole"]
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      },
    ]
  })
}

resource "aws_iam_role_policy" "payments_ledger_execution" {
  name = "payments-ledger-execution"
  role = aws_iam_role.payments_ledger_execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "PullImages"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = var.image_repositories
      },
      # A wildcard, because the token is for no single repository; the statement above says which can be pulled.
      {
        Sid      = "LogInToRegistry"
        Effect   = "Allow"
        Action   = ["ecr:GetAuthorizationToken"]
        Resource = "*"
      },
      # A wildcard, because the names of log streams are made by AWS.
      {
        Sid      = "WriteItsLog"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/countersign/payments/ledger:*"
      },
    ]
  })
}

# The containers of paygate.
resource "aws_iam_role" "payments_paygate_task" {
  name = "payments-paygate-task"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Assume"
        Effect    = "Allow"
        Principal = { Service = "ecs-tasks.amazonaws.com" }
        Action    = ["sts:AssumeRole"]
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      },
    ]
  })
}

resource "aws_iam_role_policy" "payments_paygate_task" {
  name = "payments-paygate-task"
  role = aws_iam_role.payments_paygate_task.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "ReadItsSecrets"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue"]
        Resource = [aws_secretsmanager_secret.paygate.arn, aws_secretsmanager_secret.bundle.arn]
      },
      {
        Sid      = "DecryptThem"
        Effect   = "Allow"
        Action   = ["kms:Decrypt"]
        Resource = aws_kms_key.vault.arn
        Condition = {
          StringEquals = {
            "kms:ViaService"                  = "secretsmanager.${var.region}.amazonaws.com"
            "kms:EncryptionContext:SecretARN" = [aws_secretsmanager_secret.paygate.arn, aws_secretsmanager_secret.bundle.arn]
          }
        }
      },
    ]
  })
}

# ECS, when it starts a task of paygate.
resource "aws_iam_role" "payments_paygate_execution" {
  name = "payments-paygate-execution"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Assume"
        Effect    = "Allow"
        Principal = { Service = "ecs-tasks.amazonaws.com" }
        Action    = ["sts:AssumeRole"]
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      },
    ]
  })
}

resource "aws_iam_role_policy" "payments_paygate_execution" {
  name = "payments-paygate-execution"
  role = aws_iam_role.payments_paygate_execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "PullImages"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = var.image_repositories
      },
      # A wildcard, because the token is for no single repository; the statement above says which can be pulled.
      {
        Sid      = "LogInToRegistry"
        Effect   = "Allow"
        Action   = ["ecr:GetAuthorizationToken"]
        Resource = "*"
      },
      # A wildcard, because the names of log streams are made by AWS.
      {
        Sid      = "WriteItsLog"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/countersign/payments/paygate:*"
      },
    ]
  })
}

# The containers of terminal.
resource "aws_iam_role" "payments_terminal_task" {
  name = "payments-terminal-task"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Assume"
        Effect    = "Allow"
        Principal = { Service = "ecs-tasks.amazonaws.com" }
        Action    = ["sts:AssumeRole"]
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      },
    ]
  })
}

resource "aws_iam_role_policy" "payments_terminal_task" {
  name = "payments-terminal-task"
  role = aws_iam_role.payments_terminal_task.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "ReadItsSecrets"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue"]
        Resource = [aws_secretsmanager_secret.terminal.arn, aws_secretsmanager_secret.bundle.arn]
      },
      {
        Sid      = "DecryptThem"
        Effect   = "Allow"
        Action   = ["kms:Decrypt"]
        Resource = aws_kms_key.vault.arn
        Condition = {
          StringEquals = {
            "kms:ViaService"                  = "secretsmanager.${var.region}.amazonaws.com"
            "kms:EncryptionContext:SecretARN" = [aws_secretsmanager_secret.terminal.arn, aws_secretsmanager_secret.bundle.arn]
          }
        }
      },
    ]
  })
}

# ECS, when it starts a task of terminal.
resource "aws_iam_role" "payments_terminal_execution" {
  name = "payments-terminal-execution"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Assume"
        Effect    = "Allow"
        Principal = { Service = "ecs-tasks.amazonaws.com" }
        Action    = ["sts:AssumeRole"]
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      },
    ]
  })
}

resource "aws_iam_role_policy" "payments_terminal_execution" {
  name = "payments-terminal-execution"
  role = aws_iam_role.payments_terminal_execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "PullImages"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = var.image_repositories
      },
      # A wildcard, because the token is for no single repository; the statement above says which can be pulled.
      {
        Sid      = "LogInToRegistry"
        Effect   = "Allow"
        Action   = ["ecr:GetAuthorizationToken"]
        Resource = "*"
      },
      # A wildcard, because the names of log streams are made by AWS.
      {
        Sid      = "WriteItsLog"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/countersign/payments/terminal:*"
      },
    ]
  })
}

# The rotation.
resource "aws_iam_role" "payments_rotation" {
  name = "payments-rotation"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Assume"
        Effect    = "Allow"
        Principal = { Service = "lambda.amazonaws.com" }
        Action    = ["sts:AssumeRole"]
      },
    ]
  })
}

resource "aws_iam_role_policy" "payments_rotation" {
  name = "payments-rotation"
  role = aws_iam_role.payments_rotation.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "RotateSecrets"
        Effect = "Allow"
        Action = [
          "secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue", "secretsmanager:ListSecretVersionIds",
          "secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage",
        ]
        Resource = [
          aws_secretsmanager_secret.checkout.arn, aws_secretsmanager_secret.checkout_rotation.arn,
          aws_secretsmanager_secret.bundle.arn, aws_secretsmanager_secret.bundle_rotation.arn,
          aws_secretsmanager_secret.ledger.arn, aws_secretsmanager_secret.ledger_rotation.arn,
          aws_secretsmanager_secret.paygate.arn, aws_secretsmanager_secret.paygate_rotation.arn,
          aws_secretsmanager_secret.terminal.arn, aws_secretsmanager_secret.terminal_rotation.arn,
          aws_secretsmanager_secret.pca_budget.arn,
        ]
      },
      {
        Sid      = "EncryptByVaultKey"
        Effect   = "Allow"
        Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource = aws_kms_key.vault.arn
        Condition = {
          StringEquals = {
            "kms:ViaService" = "secretsmanager.${var.region}.amazonaws.com"
            "kms:EncryptionContext:SecretARN" = [
              aws_secretsmanager_secret.checkout.arn, aws_secretsmanager_secret.checkout_rotation.arn,
              aws_secretsmanager_secret.bundle.arn, aws_secretsmanager_secret.bundle_rotation.arn,
              aws_secretsmanager_secret.ledger.arn, aws_secretsmanager_secret.ledger_rotation.arn,
              aws_secretsmanager_secret.paygate.arn, aws_secretsmanager_secret.paygate_rotation.arn,
              aws_secretsmanager_secret.terminal.arn, aws_secretsmanager_secret.terminal_rotation.arn,
              aws_secretsmanager_secret.pca_budget.arn,
            ]
          }
        }
      },
      {
        Sid    = "LookAtPcaAuthority"
        Effect = "Allow"
        Action = [
          "acm-pca:DescribeCertificateAuthority", "acm-pca:GetCertificate", "acm-pca:GetCertificateAuthorityCertificate",
        ]
        Resource = aws_acmpca_certificate_authority.pca.arn
      },
      # Leaves only: no other template, so no other CA.
      {
        Sid       = "IssueFromPcaAuthority"
        Effect    = "Allow"
        Action    = ["acm-pca:IssueCertificate"]
        Resource  = aws_acmpca_certificate_authority.pca.arn
        Condition = { StringEquals = { "acm-pca:TemplateArn" = "arn:aws:acm-pca:::template/EndEntityCertificate/V1" } }
      },
      {
        Sid    = "ReplaceTasks"
        Effect = "Allow"
        Action = ["ecs:DescribeServices", "ecs:UpdateService"]
        Resource = [
          "arn:${local.partition}:ecs:${var.region}:${local.account}:service/payments/checkout",
          "arn:${local.partition}:ecs:${var.region}:${local.account}:service/payments/ledger",
          "arn:${local.partition}:ecs:${var.region}:${local.account}:service/payments/paygate",
          "arn:${local.partition}:ecs:${var.region}:${local.account}:service/payments/terminal",
        ]
      },
      # A wildcard, because ecs:ListTasks knows no other resource; the condition names the clusters.
      {
        Sid      = "ListTasks"
        Effect   = "Allow"
        Action   = ["ecs:ListTasks"]
        Resource = "*"
        Condition = {
          ArnEquals = { "ecs:cluster" = "arn:${local.partition}:ecs:${var.region}:${local.account}:cluster/payments" }
        }
      },
      # A wildcard, because the ids of tasks are made by ECS.
      {
        Sid      = "LookAtTasks"
        Effect   = "Allow"
        Action   = ["ecs:DescribeTasks"]
        Resource = "arn:${local.partition}:ecs:${var.region}:${local.account}:task/payments/*"
      },
      # A wildcard, because the names of log streams are made by AWS.
      {
        Sid      = "WriteItsLog"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = "arn:${local.partition}:logs:${var.region}:${local.account}:log-group:/aws/lambda/payments-rotation:*"
      },
      # A wildcard, because Lambda makes the network interfaces itself and asks for this when it places a function in
      # a VPC; the next statement keeps the function's own code from it.
      {
        Sid    = "PlaceInVPC"
        Effect = "Allow"
        Action = [
          "ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface",
          "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses",
        ]
        Resource = "*"
      },
      # A wildcard, because nothing is left out of this refusal.
      {
        Sid    = "NotTheCode"
        Effect = "Deny"
        Action = [
          "ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface",
          "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses",
        ]
        Resource = "*"
        Condition = {
          ArnEquals = {
            "lambda:SourceFunctionArn" = "arn:${local.partition}:lambda:${var.region}:${local.account}:function:payments-rotation"
          }
        }
      },
    ]
  })
}

# For your own role that looks after the mesh (countersign check aws): it reads no secret, and changes nothing

resource "aws_iam_policy" "payments_auditor" {
  name        = "payments-auditor"
  description = "Looks at the mesh payments and reads no secret (countersign check aws)"
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      # A wildcard, because the rights of all roles and users are asked for together: who else can read a secret is
      # among them.
      {
        Sid      = "WhoMayDoWhat"
        Effect   = "Allow"
        Action   = ["iam:GetAccountAuthorizationDetails"]
        Resource = "*"
      },
      {
        Sid      = "LookAtKeys"
        Effect   = "Allow"
        Action   = ["kms:DescribeKey", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListGrants"]
        Resource = aws_kms_key.vault.arn
      },
      {
        Sid      = "LookAtAuthorities"
        Effect   = "Allow"
        Action   = ["acm-pca:DescribeCertificateAuthority", "acm-pca:GetPolicy"]
        Resource = aws_acmpca_certificate_authority.pca.arn
      },
      # A wildcard, because ecs:ListTasks knows no other resource; the condition names the clusters.
      {
        Sid      = "ListTasks"
        Effect   = "Allow"
        Action   = ["ecs:ListTasks"]
        Resource = "*"
        Condition = {
          ArnEquals = { "ecs:cluster" = "arn:${local.partition}:ecs:${var.region}:${local.account}:cluster/payments" }
        }
      },
      # A wildcard, because the ids of tasks are made by ECS.
      {
        Sid      = "LookAtTasks"
        Effect   = "Allow"
        Action   = ["ecs:DescribeTasks"]
        Resource = "arn:${local.partition}:ecs:${var.region}:${local.account}:task/payments/*"
      },
      # A wildcard, because ecs:ListServices knows no other resource; the condition names the clusters.
      {
        Sid      = "ListServices"
        Effect   = "Allow"
        Action   = ["ecs:ListServices"]
        Resource = "*"
        Condition = {
          ArnEquals = { "ecs:cluster" = "arn:${local.partition}:ecs:${var.region}:${local.account}:cluster/payments" }
        }
      },
      # A wildcard, because services that nobody has declared have names that nobody knows.
      {
        Sid      = "LookAtServices"
        Effect   = "Allow"
        Action   = ["ecs:DescribeServices"]
        Resource = "arn:${local.partition}:ecs:${var.region}:${local.account}:service/payments/*"
      },
      # A wildcard, because these two know no other resource.
      {
        Sid      = "LookAtTaskDefinitions"
        Effect   = "Allow"
        Action   = ["ecs:DescribeTaskDefinition", "ecs:ListTaskDefinitions"]
        Resource = "*"
      },
      # A wildcard, because these four know no other resource.
      {
        Sid    = "LookAtBalancers"
        Effect = "Allow"
        Action = [
          "elasticloadbalancing:DescribeListeners", "elasticloadbalancing:DescribeRules",
          "elasticloadbalancing:DescribeSSLPolicies", "elasticloadbalancing:DescribeTargetGroups",
        ]
        Resource = "*"
      },
      # A wildcard, because events:ListRuleNamesByTarget knows no other resource.
      {
        Sid      = "FindTheSchedule"
        Effect   = "Allow"
        Action   = ["events:ListRuleNamesByTarget"]
        Resource = "*"
      },
      # A wildcard, because whatever rule starts the rotation is looked at, and it may be another one than this
      # stack's.
      {
        Sid      = "LookAtTheSchedule"
        Effect   = "Allow"
        Action   = ["events:DescribeRule", "events:ListTargetsByRule"]
        Resource = "arn:${local.partition}:events:${var.region}:${local.account}:rule/*"
      },
      # A wildcard, because alarms are found by what they watch, and not by their names.
      {
        Sid      = "LookAtAlarms"
        Effect   = "Allow"
        Action   = ["cloudwatch:DescribeAlarms"]
        Resource = "arn:${local.partition}:cloudwatch:${var.region}:${local.account}:alarm:*"
      },
      # A wildcard, because cloudtrail:LookupEvents knows no other resource.
      {
        Sid      = "WhoHasRead"
        Effect   = "Allow"
        Action   = ["cloudtrail:LookupEvents"]
        Resource = "*"
      },
      {
        Sid    = "LookAtSecrets"
        Effect = "Allow"
        Action = ["secretsmanager:DescribeSecret", "secretsmanager:GetResourcePolicy", "secretsmanager:ListSecretVersionIds"]
        Resource = [
          aws_secretsmanager_secret.checkout.arn, aws_secretsmanager_secret.checkout_rotation.arn,
          aws_secretsmanager_secret.bundle.arn, aws_secretsmanager_secret.bundle_rotation.arn,
          aws_secretsmanager_secret.ledger.arn, aws_secretsmanager_secret.ledger_rotation.arn,
          aws_secretsmanager_secret.paygate.arn, aws_secretsmanager_secret.paygate_rotation.arn,
          aws_secretsmanager_secret.terminal.arn, aws_secretsmanager_secret.terminal_rotation.arn,
          aws_secretsmanager_secret.pca_budget.arn,
        ]
      },
    ]
  })
}

# Secrets. They have no value until the first rotation: Terraform would have to read it, and nobody but their roles may

resource "aws_secretsmanager_secret" "checkout" {
  name        = "payments/checkout"
  description = "Countersign: the certificate and key of checkout"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "checkout" {
  secret_arn          = aws_secretsmanager_secret.checkout.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElseReads"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = ["secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue"]
        Resource  = aws_secretsmanager_secret.checkout.arn
        Condition = {
          ArnNotEquals = { "aws:PrincipalArn" = [aws_iam_role.payments_rotation.arn, aws_iam_role.payments_checkout_task.arn] }
        }
      },
      {
        Sid       = "NobodyElseWrites"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = ["secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage"]
        Resource  = aws_secretsmanager_secret.checkout.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

resource "aws_secretsmanager_secret" "checkout_rotation" {
  name        = "payments/checkout.rotation"
  description = "Countersign: how the rotation of checkout went"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "checkout_rotation" {
  secret_arn          = aws_secretsmanager_secret.checkout_rotation.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElse"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action = [
          "secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue",
          "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage",
        ]
        Resource  = aws_secretsmanager_secret.checkout_rotation.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

resource "aws_secretsmanager_secret" "bundle" {
  name        = "payments/bundle"
  description = "Countersign: the roots that its readers believe"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "bundle" {
  secret_arn          = aws_secretsmanager_secret.bundle.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElseReads"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = ["secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue"]
        Resource  = aws_secretsmanager_secret.bundle.arn
        Condition = {
          ArnNotEquals = {
            "aws:PrincipalArn" = [
              aws_iam_role.payments_rotation.arn, aws_iam_role.payments_checkout_task.arn,
              aws_iam_role.payments_ledger_task.arn, aws_iam_role.payments_paygate_task.arn,
              aws_iam_role.payments_terminal_task.arn,
            ]
          }
        }
      },
      {
        Sid       = "NobodyElseWrites"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = ["secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage"]
        Resource  = aws_secretsmanager_secret.bundle.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

resource "aws_secretsmanager_secret" "bundle_rotation" {
  name        = "payments/bundle.rotation"
  description = "Countersign: how the last change of payments/bundle went"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "bundle_rotation" {
  secret_arn          = aws_secretsmanager_secret.bundle_rotation.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElse"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action = [
          "secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue",
          "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage",
        ]
        Resource  = aws_secretsmanager_secret.bundle_rotation.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

resource "aws_secretsmanager_secret" "ledger" {
  name        = "payments/ledger"
  description = "Countersign: the certificate and key of ledger"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "ledger" {
  secret_arn          = aws_secretsmanager_secret.ledger.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElseReads"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = ["secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue"]
        Resource  = aws_secretsmanager_secret.ledger.arn
        Condition = {
          ArnNotEquals = { "aws:PrincipalArn" = [aws_iam_role.payments_rotation.arn, aws_iam_role.payments_ledger_task.arn] }
        }
      },
      {
        Sid       = "NobodyElseWrites"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = ["secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage"]
        Resource  = aws_secretsmanager_secret.ledger.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

resource "aws_secretsmanager_secret" "ledger_rotation" {
  name        = "payments/ledger.rotation"
  description = "Countersign: how the rotation of ledger went"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "ledger_rotation" {
  secret_arn          = aws_secretsmanager_secret.ledger_rotation.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElse"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action = [
          "secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue",
          "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage",
        ]
        Resource  = aws_secretsmanager_secret.ledger_rotation.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

resource "aws_secretsmanager_secret" "paygate" {
  name        = "payments/paygate"
  description = "Countersign: the certificate and key of paygate"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "paygate" {
  secret_arn          = aws_secretsmanager_secret.paygate.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElseReads"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = ["secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue"]
        Resource  = aws_secretsmanager_secret.paygate.arn
        Condition = {
          ArnNotEquals = { "aws:PrincipalArn" = [aws_iam_role.payments_rotation.arn, aws_iam_role.payments_paygate_task.arn] }
        }
      },
      {
        Sid       = "NobodyElseWrites"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = ["secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage"]
        Resource  = aws_secretsmanager_secret.paygate.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

resource "aws_secretsmanager_secret" "paygate_rotation" {
  name        = "payments/paygate.rotation"
  description = "Countersign: how the rotation of paygate went"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "paygate_rotation" {
  secret_arn          = aws_secretsmanager_secret.paygate_rotation.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElse"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action = [
          "secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue",
          "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage",
        ]
        Resource  = aws_secretsmanager_secret.paygate_rotation.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

resource "aws_secretsmanager_secret" "terminal" {
  name        = "payments/terminal"
  description = "Countersign: the certificate and key of terminal"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "terminal" {
  secret_arn          = aws_secretsmanager_secret.terminal.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElseReads"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = ["secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue"]
        Resource  = aws_secretsmanager_secret.terminal.arn
        Condition = {
          ArnNotEquals = { "aws:PrincipalArn" = [aws_iam_role.payments_rotation.arn, aws_iam_role.payments_terminal_task.arn] }
        }
      },
      {
        Sid       = "NobodyElseWrites"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = ["secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage"]
        Resource  = aws_secretsmanager_secret.terminal.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

resource "aws_secretsmanager_secret" "terminal_rotation" {
  name        = "payments/terminal.rotation"
  description = "Countersign: how the rotation of terminal went"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "terminal_rotation" {
  secret_arn          = aws_secretsmanager_secret.terminal_rotation.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElse"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action = [
          "secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue",
          "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage",
        ]
        Resource  = aws_secretsmanager_secret.terminal_rotation.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

resource "aws_secretsmanager_secret" "pca_budget" {
  name        = "payments/pca.budget"
  description = "Countersign: how many certificates pca issued this month"
  kms_key_id  = aws_kms_key.vault.arn
}

resource "aws_secretsmanager_secret_policy" "pca_budget" {
  secret_arn          = aws_secretsmanager_secret.pca_budget.arn
  block_public_policy = true
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "NobodyElse"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action = [
          "secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue",
          "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage",
        ]
        Resource  = aws_secretsmanager_secret.pca_budget.arn
        Condition = { ArnNotEquals = { "aws:PrincipalArn" = aws_iam_role.payments_rotation.arn } }
      },
    ]
  })
}

# Private CA

# Billed by the month while it is there.
resource "aws_acmpca_certificate_authority" "pca" {
  type       = "ROOT"
  usage_mode = "SHORT_LIVED_CERTIFICATE"
  certificate_authority_configuration {
    key_algorithm     = "EC_secp384r1"
    signing_algorithm = "SHA384WITHECDSA"
    subject {
      common_name  = "payments pca"
      organization = "payments.internal"
    }
  }
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_acmpca_certificate" "pca" {
  certificate_authority_arn   = aws_acmpca_certificate_authority.pca.arn
  certificate_signing_request = aws_acmpca_certificate_authority.pca.certificate_signing_request
  signing_algorithm           = "SHA384WITHECDSA"
  template_arn                = "arn:${local.partition}:acm-pca:::template/RootCACertificate/V1"
  validity {
    type  = "YEARS"
    value = 10
  }
}

resource "aws_acmpca_certificate_authority_certificate" "pca" {
  certificate_authority_arn = aws_acmpca_certificate_authority.pca.arn
  certificate               = aws_acmpca_certificate.pca.certificate
}

# Logs

resource "aws_cloudwatch_log_group" "checkout" {
  name              = "/countersign/payments/checkout"
  retention_in_days = 365
  kms_key_id        = aws_kms_key.countersign_logs.arn
}

resource "aws_cloudwatch_log_group" "ledger" {
  name              = "/countersign/payments/ledger"
  retention_in_days = 365
  kms_key_id        = aws_kms_key.countersign_logs.arn
}

resource "aws_cloudwatch_log_group" "paygate" {
  name              = "/countersign/payments/paygate"
  retention_in_days = 365
  kms_key_id        = aws_kms_key.countersign_logs.arn
}

resource "aws_cloudwatch_log_group" "terminal" {
  name              = "/countersign/payments/terminal"
  retention_in_days = 365
  kms_key_id        = aws_kms_key.countersign_logs.arn
}

resource "aws_cloudwatch_log_group" "payments_rotation" {
  name              = "/aws/lambda/payments-rotation"
  retention_in_days = 365
  kms_key_id        = aws_kms_key.countersign_logs.arn
}

# Who may connect to whom: the graph of the specification

resource "aws_security_group" "payments_rotation" {
  description = "the rotation of the mesh payments"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "payments_rotation_to_aws" {
  security_group_id = aws_security_group.payments_rotation.id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = var.aws_api_cidr
  description       = "the endpoints of AWS"
}

resource "aws_security_group" "checkout" {
  description = "tasks of checkout"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "checkout_to_aws" {
  security_group_id = aws_security_group.checkout.id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = var.aws_api_cidr
  description       = "the endpoints of AWS"
}

resource "aws_security_group" "checkout_balancer" {
  description = "the balancer of checkout"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "checkout_balancer_8081" {
  security_group_id            = aws_security_group.checkout_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 8081
  to_port                      = 8081
  referenced_security_group_id = aws_security_group.checkout.id
  description                  = "to its tasks"
}

resource "aws_vpc_security_group_ingress_rule" "checkout_8081" {
  security_group_id            = aws_security_group.checkout.id
  ip_protocol                  = "tcp"
  from_port                    = 8081
  to_port                      = 8081
  referenced_security_group_id = aws_security_group.checkout_balancer.id
  description                  = "from its balancer"
}

resource "aws_vpc_security_group_egress_rule" "payments_rotation_to_checkout_8081" {
  security_group_id            = aws_security_group.payments_rotation.id
  ip_protocol                  = "tcp"
  from_port                    = 8081
  to_port                      = 8081
  referenced_security_group_id = aws_security_group.checkout.id
  description                  = "sees what checkout shows"
}

resource "aws_vpc_security_group_ingress_rule" "checkout_from_payments_rotation_8081" {
  security_group_id            = aws_security_group.checkout.id
  ip_protocol                  = "tcp"
  from_port                    = 8081
  to_port                      = 8081
  referenced_security_group_id = aws_security_group.payments_rotation.id
  description                  = "the rotation sees what is shown"
}

resource "aws_vpc_security_group_egress_rule" "checkout_to_ledger_9000" {
  security_group_id            = aws_security_group.checkout.id
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
  referenced_security_group_id = aws_security_group.ledger_balancer.id
  description                  = "calls ledger"
}

resource "aws_vpc_security_group_ingress_rule" "ledger_balancer_from_checkout_9000" {
  security_group_id            = aws_security_group.ledger_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
  referenced_security_group_id = aws_security_group.checkout.id
  description                  = "from checkout"
}

resource "aws_security_group" "ledger" {
  description = "tasks of ledger"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "ledger_to_aws" {
  security_group_id = aws_security_group.ledger.id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = var.aws_api_cidr
  description       = "the endpoints of AWS"
}

resource "aws_security_group" "ledger_balancer" {
  description = "the balancer of ledger"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "ledger_balancer_9000" {
  security_group_id            = aws_security_group.ledger_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
  referenced_security_group_id = aws_security_group.ledger.id
  description                  = "to its tasks"
}

resource "aws_vpc_security_group_ingress_rule" "ledger_9000" {
  security_group_id            = aws_security_group.ledger.id
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
  referenced_security_group_id = aws_security_group.ledger_balancer.id
  description                  = "from its balancer"
}

resource "aws_vpc_security_group_egress_rule" "payments_rotation_to_ledger_9000" {
  security_group_id            = aws_security_group.payments_rotation.id
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
  referenced_security_group_id = aws_security_group.ledger.id
  description                  = "sees what ledger shows"
}

resource "aws_vpc_security_group_ingress_rule" "ledger_from_payments_rotation_9000" {
  security_group_id            = aws_security_group.ledger.id
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
  referenced_security_group_id = aws_security_group.payments_rotation.id
  description                  = "the rotation sees what is shown"
}

resource "aws_security_group" "paygate" {
  description = "tasks of paygate"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "paygate_to_aws" {
  security_group_id = aws_security_group.paygate.id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = var.aws_api_cidr
  description       = "the endpoints of AWS"
}

resource "aws_security_group" "paygate_balancer" {
  description = "the balancer of paygate"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "paygate_balancer_8080" {
  security_group_id            = aws_security_group.paygate_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 8080
  to_port                      = 8080
  referenced_security_group_id = aws_security_group.paygate.id
  description                  = "to its tasks"
}

resource "aws_vpc_security_group_ingress_rule" "paygate_8080" {
  security_group_id            = aws_security_group.paygate.id
  ip_protocol                  = "tcp"
  from_port                    = 8080
  to_port                      = 8080
  referenced_security_group_id = aws_security_group.paygate_balancer.id
  description                  = "from its balancer"
}

resource "aws_vpc_security_group_ingress_rule" "paygate_balancer_from_clients_8080" {
  security_group_id = aws_security_group.paygate_balancer.id
  ip_protocol       = "tcp"
  from_port         = 8080
  to_port           = 8080
  cidr_ipv4         = var.client_cidr
  description       = "the outside"
}

resource "aws_vpc_security_group_egress_rule" "paygate_balancer_8090" {
  security_group_id            = aws_security_group.paygate_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 8090
  to_port                      = 8090
  referenced_security_group_id = aws_security_group.paygate.id
  description                  = "to its tasks"
}

resource "aws_vpc_security_group_ingress_rule" "paygate_8090" {
  security_group_id            = aws_security_group.paygate.id
  ip_protocol                  = "tcp"
  from_port                    = 8090
  to_port                      = 8090
  referenced_security_group_id = aws_security_group.paygate_balancer.id
  description                  = "from its balancer"
}

resource "aws_vpc_security_group_ingress_rule" "paygate_balancer_from_clients_8090" {
  security_group_id = aws_security_group.paygate_balancer.id
  ip_protocol       = "tcp"
  from_port         = 8090
  to_port           = 8090
  cidr_ipv4         = var.client_cidr
  description       = "the outside"
}

resource "aws_vpc_security_group_egress_rule" "paygate_balancer_7070" {
  security_group_id            = aws_security_group.paygate_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 7070
  to_port                      = 7070
  referenced_security_group_id = aws_security_group.paygate.id
  description                  = "to its tasks"
}

resource "aws_vpc_security_group_ingress_rule" "paygate_7070" {
  security_group_id            = aws_security_group.paygate.id
  ip_protocol                  = "tcp"
  from_port                    = 7070
  to_port                      = 7070
  referenced_security_group_id = aws_security_group.paygate_balancer.id
  description                  = "from its balancer"
}

resource "aws_vpc_security_group_ingress_rule" "paygate_balancer_from_clients_7070" {
  security_group_id = aws_security_group.paygate_balancer.id
  ip_protocol       = "tcp"
  from_port         = 7070
  to_port           = 7070
  cidr_ipv4         = var.client_cidr
  description       = "the outside"
}

resource "aws_vpc_security_group_egress_rule" "paygate_to_checkout_8081" {
  security_group_id            = aws_security_group.paygate.id
  ip_protocol                  = "tcp"
  from_port                    = 8081
  to_port                      = 8081
  referenced_security_group_id = aws_security_group.checkout_balancer.id
  description                  = "calls checkout"
}

resource "aws_vpc_security_group_ingress_rule" "checkout_balancer_from_paygate_8081" {
  security_group_id            = aws_security_group.checkout_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 8081
  to_port                      = 8081
  referenced_security_group_id = aws_security_group.paygate.id
  description                  = "from paygate"
}

resource "aws_vpc_security_group_egress_rule" "paygate_to_ledger_9000" {
  security_group_id            = aws_security_group.paygate.id
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
  referenced_security_group_id = aws_security_group.ledger_balancer.id
  description                  = "calls ledger"
}

resource "aws_vpc_security_group_ingress_rule" "ledger_balancer_from_paygate_9000" {
  security_group_id            = aws_security_group.ledger_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
  referenced_security_group_id = aws_security_group.paygate.id
  description                  = "from paygate"
}

resource "aws_vpc_security_group_egress_rule" "paygate_to_terminal_7000" {
  security_group_id            = aws_security_group.paygate.id
  ip_protocol                  = "tcp"
  from_port                    = 7000
  to_port                      = 7000
  referenced_security_group_id = aws_security_group.terminal_balancer.id
  description                  = "calls terminal"
}

resource "aws_vpc_security_group_ingress_rule" "terminal_balancer_from_paygate_7000" {
  security_group_id            = aws_security_group.terminal_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 7000
  to_port                      = 7000
  referenced_security_group_id = aws_security_group.paygate.id
  description                  = "from paygate"
}

resource "aws_security_group" "terminal" {
  description = "tasks of terminal"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "terminal_to_aws" {
  security_group_id = aws_security_group.terminal.id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = var.aws_api_cidr
  description       = "the endpoints of AWS"
}

resource "aws_security_group" "terminal_balancer" {
  description = "the balancer of terminal"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "terminal_balancer_7000" {
  security_group_id            = aws_security_group.terminal_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 7000
  to_port                      = 7000
  referenced_security_group_id = aws_security_group.terminal.id
  description                  = "to its tasks"
}

resource "aws_vpc_security_group_ingress_rule" "terminal_7000" {
  security_group_id            = aws_security_group.terminal.id
  ip_protocol                  = "tcp"
  from_port                    = 7000
  to_port                      = 7000
  referenced_security_group_id = aws_security_group.terminal_balancer.id
  description                  = "from its balancer"
}

resource "aws_vpc_security_group_egress_rule" "payments_rotation_to_terminal_7000" {
  security_group_id            = aws_security_group.payments_rotation.id
  ip_protocol                  = "tcp"
  from_port                    = 7000
  to_port                      = 7000
  referenced_security_group_id = aws_security_group.terminal.id
  description                  = "sees what terminal shows"
}

resource "aws_vpc_security_group_ingress_rule" "terminal_from_payments_rotation_7000" {
  security_group_id            = aws_security_group.terminal.id
  ip_protocol                  = "tcp"
  from_port                    = 7000
  to_port                      = 7000
  referenced_security_group_id = aws_security_group.payments_rotation.id
  description                  = "the rotation sees what is shown"
}

resource "aws_vpc_security_group_egress_rule" "terminal_to_ledger_9000" {
  security_group_id            = aws_security_group.terminal.id
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
  referenced_security_group_id = aws_security_group.ledger_balancer.id
  description                  = "calls ledger"
}

resource "aws_vpc_security_group_ingress_rule" "ledger_balancer_from_terminal_9000" {
  security_group_id            = aws_security_group.ledger_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
  referenced_security_group_id = aws_security_group.terminal.id
  description                  = "from terminal"
}

# Clusters

resource "aws_ecs_cluster" "payments" {
  name = "payments"
  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

# The service checkout

resource "aws_lb" "checkout" {
  load_balancer_type               = "network"
  internal                         = true
  subnets                          = var.subnet_ids
  security_groups                  = [aws_security_group.checkout_balancer.id]
  enable_cross_zone_load_balancing = true
}

# Health is a TCP connection: a balancer has no certificate that the proxy would take.
resource "aws_lb_target_group" "checkout_8081" {
  target_type          = "ip"
  protocol             = "TCP"
  port                 = 8081
  vpc_id               = var.vpc_id
  deregistration_delay = 60
  health_check {
    protocol            = "TCP"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "checkout_8081" {
  load_balancer_arn = aws_lb.checkout.arn
  protocol          = "TCP"
  port              = 8081
  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.checkout_8081.arn
  }
}

resource "aws_ecs_task_definition" "checkout" {
  family                   = "payments-checkout"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.task_cpu
  memory                   = var.task_memory
  runtime_platform {
    cpu_architecture        = var.architecture
    operating_system_family = "LINUX"
  }
  task_role_arn      = aws_iam_role.payments_checkout_task.arn
  execution_role_arn = aws_iam_role.payments_checkout_execution.arn
  volume {
    name = "certificates"
  }
  volume {
    name = "proxy"
  }
  container_definitions = jsonencode([
    # Reads the secrets by the task role, writes the files of the proxy, and ends. The application has the same role: it
    # can read the key of checkout, and no other.
    {
      name                   = "init"
      image                  = var.countersign_image
      essential              = false
      user                   = "101:101"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/checkout"
          awslogs-region        = var.region
          awslogs-stream-prefix = "init"
        }
      }
      command = [
        "init", "--from", "secretsmanager:payments/checkout", "--layout", "json", "--bundle-from",
        "secret:payments/bundle", "--to", "/tls", "--engine", "nginx", "--conf", "/tls", "--plan",
        "env:COUNTERSIGN_PLAN", "--run-dir", "/proxy", "--connection-age", "30s", "--stream-module",
        var.nginx_stream_module, "--endpoint", "ledger:9000=${aws_lb.ledger.dns_name}:9000",
      ]
      environment = [
        {
          name  = "COUNTERSIGN_PLAN"
          value = "{\"version\":1,\"mesh\":\"payments\",\"trustDomain\":\"payments.internal\",\"revision\":0,\"workload\":{\"name\":\"checkout\",\"kind\":\"service\",\"identity\":\"spiffe://payments.internal/service/checkout\"},\"certificate\":{\"identity\":\"spiffe://payments.internal/service/checkout\",\"dnsNames\":[\"checkout\",\"checkout.payments.internal\"],\"ttl\":\"168h0m0s\",\"renewAfter\":\"120h0m0s\",\"key\":\"ecdsa-p256\",\"authority\":\"pca\"},\"proxy\":{\"engine\":\"nginx\",\"version\":\"1.22.1\"},\"delivery\":{\"type\":\"store\",\"storeName\":\"vault\",\"store\":{\"type\":\"secretsmanager\"},\"secret\":\"payments/checkout\",\"layout\":\"json\",\"bundle\":\"payments/bundle\"},\"deploy\":\"ecs\",\"ecs\":{\"cluster\":\"payments\",\"service\":\"checkout\"},\"inbound\":[{\"name\":\"0.0.0.0_8081\",\"port\":8081,\"protocol\":\"http\",\"app\":18081,\"tls\":\"strict\",\"clientAuth\":\"require\",\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"rules\":[{\"from\":[\"spiffe://payments.internal/gateway/paygate\"],\"methods\":[\"POST\"],\"paths\":[\"/payments\"]},{\"from\":[\"spiffe://payments.internal/gateway/paygate\"],\"methods\":[\"GET\"],\"paths\":[\"/payments/*\"]}]}],\"outbound\":[{\"name\":\"127.0.0.1_9000\",\"listen\":9000,\"protocol\":\"grpc\",\"upstream\":\"ledger_9000\"}],\"upstreams\":[{\"name\":\"ledger_9000\",\"service\":\"ledger\",\"port\":9000,\"protocol\":\"grpc\",\"identity\":\"spiffe://payments.internal/service/ledger\",\"serverName\":\"ledger.payments.internal\",\"tls\":true,\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"endpoints\":[]}]}"
        },
      ]
      mountPoints = [
        { sourceVolume = "certificates", containerPath = "/tls" },
        { sourceVolume = "proxy", containerPath = "/proxy" },
      ]
    },
    # The proxy. It starts when init has succeeded, and not when it has only ended (COMPLETE).
    {
      name                   = "proxy"
      image                  = var.nginx_image
      essential              = true
      user                   = "101:101"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/checkout"
          awslogs-region        = var.region
          awslogs-stream-prefix = "proxy"
        }
      }
      entryPoint = ["nginx"]
      command    = ["-e", "stderr", "-c", "/tls/nginx.conf"]
      dependsOn = [
        { containerName = "init", condition = "SUCCESS" },
      ]
      portMappings = [
        { containerPort = 8081, protocol = "tcp" },
      ]
      healthCheck = {
        command     = ["CMD", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8081"]
        interval    = 5
        timeout     = 3
        retries     = 3
        startPeriod = 30
      }
      mountPoints = [
        { sourceVolume = "certificates", containerPath = "/tls", readOnly = true },
        { sourceVolume = "proxy", containerPath = "/proxy" },
      ]
      stopTimeout = 60
    },
    # The application. It starts when the proxy serves, because it calls through it, and is stopped before it: ECS stops in the reverse order.
    {
      name                   = "app"
      image                  = var.checkout_image
      essential              = true
      user                   = "10001:10001"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/checkout"
          awslogs-region        = var.region
          awslogs-stream-prefix = "app"
        }
      }
      entryPoint = ["countersign"]
      command    = ["example", "run", "checkout", "--listen", "127.0.0.1:18081", "--ledger", "127.0.0.1:9000"]
      dependsOn = [
        { containerName = "proxy", condition = "HEALTHY" },
      ]
      healthCheck = { command = var.checkout_health_check, interval = 5, timeout = 3, retries = 3, startPeriod = 30 }
      stopTimeout = 30
    },
    # Ends at once, when the application is healthy. ECS calls a task RUNNING, and puts it into its target groups, when all of its
    # containers were started: without this one, requests would come while the application does not listen yet.
    {
      name                   = "ready"
      image                  = var.countersign_image
      essential              = false
      user                   = "101:101"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/checkout"
          awslogs-region        = var.region
          awslogs-stream-prefix = "ready"
        }
      }
      command = ["version"]
      dependsOn = [
        { containerName = "app", condition = "HEALTHY" },
      ]
    },
  ])
}

resource "aws_ecs_service" "checkout" {
  name            = "checkout"
  cluster         = aws_ecs_cluster.payments.id
  task_definition = aws_ecs_task_definition.checkout.arn
  launch_type     = "FARGATE"
  desired_count   = var.desired_count
  # A shell in a container could read the key.
  enable_execute_command             = false
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  health_check_grace_period_seconds  = 60
  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }
  network_configuration {
    assign_public_ip = false
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.checkout.id]
  }
  load_balancer {
    container_name   = "proxy"
    container_port   = 8081
    target_group_arn = aws_lb_target_group.checkout_8081.arn
  }
  depends_on = [
    aws_iam_role_policy.payments_checkout_execution, aws_iam_role_policy.payments_checkout_task,
    aws_lb_listener.checkout_8081,
  ]
}

# The service ledger

resource "aws_lb" "ledger" {
  load_balancer_type               = "network"
  internal                         = true
  subnets                          = var.subnet_ids
  security_groups                  = [aws_security_group.ledger_balancer.id]
  enable_cross_zone_load_balancing = true
}

# Health is a TCP connection: a balancer has no certificate that the proxy would take.
resource "aws_lb_target_group" "ledger_9000" {
  target_type          = "ip"
  protocol             = "TCP"
  port                 = 9000
  vpc_id               = var.vpc_id
  deregistration_delay = 60
  health_check {
    protocol            = "TCP"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "ledger_9000" {
  load_balancer_arn = aws_lb.ledger.arn
  protocol          = "TCP"
  port              = 9000
  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.ledger_9000.arn
  }
}

resource "aws_ecs_task_definition" "ledger" {
  family                   = "payments-ledger"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.task_cpu
  memory                   = var.task_memory
  runtime_platform {
    cpu_architecture        = var.architecture
    operating_system_family = "LINUX"
  }
  task_role_arn      = aws_iam_role.payments_ledger_task.arn
  execution_role_arn = aws_iam_role.payments_ledger_execution.arn
  volume {
    name = "certificates"
  }
  volume {
    name = "proxy"
  }
  container_definitions = jsonencode([
    # Reads the secrets by the task role, writes the files of the proxy, and ends. The application has the same role: it
    # can read the key of ledger, and no other.
    {
      name                   = "init"
      image                  = var.countersign_image
      essential              = false
      user                   = "101:101"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/ledger"
          awslogs-region        = var.region
          awslogs-stream-prefix = "init"
        }
      }
      command = [
        "init", "--from", "secretsmanager:payments/ledger", "--layout", "json", "--bundle-from",
        "secret:payments/bundle", "--to", "/tls", "--engine", "haproxy", "--conf", "/tls", "--plan",
        "env:COUNTERSIGN_PLAN", "--run-dir", "/proxy", "--connection-age", "30s",
      ]
      environment = [
        {
          name  = "COUNTERSIGN_PLAN"
          value = "{\"version\":1,\"mesh\":\"payments\",\"trustDomain\":\"payments.internal\",\"revision\":0,\"workload\":{\"name\":\"ledger\",\"kind\":\"service\",\"identity\":\"spiffe://payments.internal/service/ledger\"},\"certificate\":{\"identity\":\"spiffe://payments.internal/service/ledger\",\"dnsNames\":[\"ledger\",\"ledger.payments.internal\"],\"ttl\":\"168h0m0s\",\"renewAfter\":\"120h0m0s\",\"key\":\"ecdsa-p256\",\"authority\":\"pca\"},\"proxy\":{\"engine\":\"haproxy\",\"version\":\"2.6.12\"},\"delivery\":{\"type\":\"store\",\"storeName\":\"vault\",\"store\":{\"type\":\"secretsmanager\"},\"secret\":\"payments/ledger\",\"layout\":\"json\",\"bundle\":\"payments/bundle\"},\"deploy\":\"ecs\",\"ecs\":{\"cluster\":\"payments\",\"service\":\"ledger\"},\"inbound\":[{\"name\":\"0.0.0.0_9000\",\"port\":9000,\"protocol\":\"grpc\",\"app\":19000,\"tls\":\"strict\",\"clientAuth\":\"require\",\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"rules\":[{\"from\":[\"spiffe://payments.internal/service/checkout\",\"spiffe://payments.internal/service/terminal\"],\"methods\":[\"POST\"],\"paths\":[\"/payments.Ledger/*\"]},{\"from\":[\"spiffe://payments.internal/gateway/paygate\"],\"methods\":[\"POST\"],\"paths\":[\"/payments.Ledger/Balance\"]}]}],\"outbound\":[],\"upstreams\":[]}"
        },
      ]
      mountPoints = [
        { sourceVolume = "certificates", containerPath = "/tls" },
        { sourceVolume = "proxy", containerPath = "/proxy" },
      ]
    },
    # The proxy. It starts when init has succeeded, and not when it has only ended (COMPLETE).
    # It serves when the application is healthy, and is stopped before it: ECS stops in the reverse order.
    {
      name                   = "proxy"
      image                  = var.haproxy_image
      essential              = true
      user                   = "101:101"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/ledger"
          awslogs-region        = var.region
          awslogs-stream-prefix = "proxy"
        }
      }
      entryPoint = ["haproxy"]
      command    = ["-W", "-db", "-f", "/tls/haproxy.cfg"]
      dependsOn = [
        { containerName = "init", condition = "SUCCESS" },
        { containerName = "app", condition = "HEALTHY" },
      ]
      portMappings = [
        { containerPort = 9000, protocol = "tcp" },
      ]
      healthCheck = {
        command     = ["CMD", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9000"]
        interval    = 5
        timeout     = 3
        retries     = 3
        startPeriod = 30
      }
      mountPoints = [
        { sourceVolume = "certificates", containerPath = "/tls", readOnly = true },
        { sourceVolume = "proxy", containerPath = "/proxy" },
      ]
      stopTimeout = 60
    },
    # The application. It calls nobody, and does not wait for the proxy.
    {
      name                   = "app"
      image                  = var.ledger_image
      essential              = true
      user                   = "10001:10001"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options   = { awslogs-group = "/countersign/payments/ledger", awslogs-region = var.region, awslogs-stream-prefix = "app" }
      }
      entryPoint  = ["countersign"]
      command     = ["example", "run", "ledger", "--listen", "127.0.0.1:19000"]
      healthCheck = { command = var.ledger_health_check, interval = 5, timeout = 3, retries = 3, startPeriod = 30 }
      stopTimeout = 30
    },
  ])
}

resource "aws_ecs_service" "ledger" {
  name            = "ledger"
  cluster         = aws_ecs_cluster.payments.id
  task_definition = aws_ecs_task_definition.ledger.arn
  launch_type     = "FARGATE"
  desired_count   = var.desired_count
  # A shell in a container could read the key.
  enable_execute_command             = false
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  health_check_grace_period_seconds  = 60
  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }
  network_configuration {
    assign_public_ip = false
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.ledger.id]
  }
  load_balancer {
    container_name   = "proxy"
    container_port   = 9000
    target_group_arn = aws_lb_target_group.ledger_9000.arn
  }
  depends_on = [
    aws_iam_role_policy.payments_ledger_execution, aws_iam_role_policy.payments_ledger_task,
    aws_lb_listener.ledger_9000,
  ]
}

# The gateway paygate

resource "aws_lb" "paygate" {
  load_balancer_type               = "network"
  internal                         = true
  subnets                          = var.subnet_ids
  security_groups                  = [aws_security_group.paygate_balancer.id]
  enable_cross_zone_load_balancing = true
}

# Health is a TCP connection: a balancer has no certificate that the proxy would take.
resource "aws_lb_target_group" "paygate_8080" {
  target_type          = "ip"
  protocol             = "TCP"
  port                 = 8080
  vpc_id               = var.vpc_id
  deregistration_delay = 60
  health_check {
    protocol            = "TCP"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "paygate_8080" {
  load_balancer_arn = aws_lb.paygate.arn
  protocol          = "TCP"
  port              = 8080
  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.paygate_8080.arn
  }
}

resource "aws_lb_target_group" "paygate_8090" {
  target_type          = "ip"
  protocol             = "TCP"
  port                 = 8090
  vpc_id               = var.vpc_id
  deregistration_delay = 60
  health_check {
    protocol            = "TCP"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "paygate_8090" {
  load_balancer_arn = aws_lb.paygate.arn
  protocol          = "TCP"
  port              = 8090
  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.paygate_8090.arn
  }
}

resource "aws_lb_target_group" "paygate_7070" {
  target_type          = "ip"
  protocol             = "TCP"
  port                 = 7070
  vpc_id               = var.vpc_id
  deregistration_delay = 60
  health_check {
    protocol            = "TCP"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "paygate_7070" {
  load_balancer_arn = aws_lb.paygate.arn
  protocol          = "TCP"
  port              = 7070
  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.paygate_7070.arn
  }
}

resource "aws_ecs_task_definition" "paygate" {
  family                   = "payments-paygate"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.task_cpu
  memory                   = var.task_memory
  runtime_platform {
    cpu_architecture        = var.architecture
    operating_system_family = "LINUX"
  }
  task_role_arn      = aws_iam_role.payments_paygate_task.arn
  execution_role_arn = aws_iam_role.payments_paygate_execution.arn
  volume {
    name = "certificates"
  }
  volume {
    name = "proxy"
  }
  container_definitions = jsonencode([
    # Reads the secrets by the task role, writes the files of the proxy, and ends. The application has the same role: it
    # can read the key of paygate, and no other.
    {
      name                   = "init"
      image                  = var.countersign_image
      essential              = false
      user                   = "101:101"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/paygate"
          awslogs-region        = var.region
          awslogs-stream-prefix = "init"
        }
      }
      command = [
        "init", "--from", "secretsmanager:payments/paygate", "--layout", "json", "--bundle-from",
        "secret:payments/bundle", "--to", "/tls", "--engine", "nginx", "--conf", "/tls", "--plan",
        "env:COUNTERSIGN_PLAN", "--run-dir", "/proxy", "--connection-age", "30s", "--stream-module",
        var.nginx_stream_module, "--endpoint", "checkout:8081=${aws_lb.checkout.dns_name}:8081", "--endpoint",
        "ledger:9000=${aws_lb.ledger.dns_name}:9000", "--endpoint", "terminal:7000=${aws_lb.terminal.dns_name}:7000",
      ]
      environment = [
        {
          name  = "COUNTERSIGN_PLAN"
          value = "{\"version\":1,\"mesh\":\"payments\",\"trustDomain\":\"payments.internal\",\"revision\":0,\"workload\":{\"name\":\"paygate\",\"kind\":\"gateway\",\"identity\":\"spiffe://payments.internal/gateway/paygate\"},\"certificate\":{\"identity\":\"spiffe://payments.internal/gateway/paygate\",\"dnsNames\":[\"paygate\",\"paygate.payments.internal\"],\"ttl\":\"168h0m0s\",\"renewAfter\":\"120h0m0s\",\"key\":\"ecdsa-p256\",\"authority\":\"pca\"},\"proxy\":{\"engine\":\"nginx\",\"version\":\"1.22.1\"},\"delivery\":{\"type\":\"store\",\"storeName\":\"vault\",\"store\":{\"type\":\"secretsmanager\"},\"secret\":\"payments/paygate\",\"layout\":\"json\",\"bundle\":\"payments/bundle\"},\"deploy\":\"ecs\",\"ecs\":{\"cluster\":\"payments\",\"service\":\"paygate\"},\"inbound\":[{\"name\":\"0.0.0.0_8080\",\"port\":8080,\"protocol\":\"http\",\"tls\":\"off\",\"clientAuth\":\"none\",\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"rules\":[{\"from\":[\"anonymous\"]}],\"routes\":[{\"match\":{\"prefix\":\"/payments\"},\"to\":[{\"upstream\":\"checkout_8081\",\"weight\":1}]}]},{\"name\":\"0.0.0.0_8090\",\"port\":8090,\"protocol\":\"grpc\",\"tls\":\"off\",\"clientAuth\":\"none\",\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"rules\":[{\"from\":[\"anonymous\"]}],\"routes\":[{\"match\":{\"prefix\":\"/payments.Ledger\"},\"to\":[{\"upstream\":\"ledger_9000\",\"weight\":1}]}]},{\"name\":\"0.0.0.0_7070\",\"port\":7070,\"protocol\":\"tcp\",\"tls\":\"off\",\"clientAuth\":\"none\",\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"rules\":[{\"from\":[\"anonymous\"]}],\"routes\":[{\"match\":{},\"to\":[{\"upstream\":\"terminal_7000\",\"weight\":1}]}]}],\"outbound\":[],\"upstreams\":[{\"name\":\"checkout_8081\",\"service\":\"checkout\",\"port\":8081,\"protocol\":\"http\",\"identity\":\"spiffe://payments.internal/service/checkout\",\"serverName\":\"checkout.payments.internal\",\"tls\":true,\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"endpoints\":[]},{\"name\":\"ledger_9000\",\"service\":\"ledger\",\"port\":9000,\"protocol\":\"grpc\",\"identity\":\"spiffe://payments.internal/service/ledger\",\"serverName\":\"ledger.payments.internal\",\"tls\":true,\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"endpoints\":[]},{\"name\":\"terminal_7000\",\"service\":\"terminal\",\"port\":7000,\"protocol\":\"tcp\",\"identity\":\"spiffe://payments.internal/service/terminal\",\"serverName\":\"terminal.payments.internal\",\"tls\":true,\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"endpoints\":[]}]}"
        },
      ]
      mountPoints = [
        { sourceVolume = "certificates", containerPath = "/tls" },
        { sourceVolume = "proxy", containerPath = "/proxy" },
      ]
    },
    # The proxy. It starts when init has succeeded, and not when it has only ended (COMPLETE).
    {
      name                   = "proxy"
      image                  = var.nginx_image
      essential              = true
      user                   = "101:101"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/paygate"
          awslogs-region        = var.region
          awslogs-stream-prefix = "proxy"
        }
      }
      entryPoint = ["nginx"]
      command    = ["-e", "stderr", "-c", "/tls/nginx.conf"]
      dependsOn = [
        { containerName = "init", condition = "SUCCESS" },
      ]
      portMappings = [
        { containerPort = 8080, protocol = "tcp" },
        { containerPort = 8090, protocol = "tcp" },
        { containerPort = 7070, protocol = "tcp" },
      ]
      healthCheck = {
        command = [
          "CMD", "bash", "-c",
          "exec 3<>/dev/tcp/127.0.0.1/8080 && exec 3<>/dev/tcp/127.0.0.1/8090 && exec 3<>/dev/tcp/127.0.0.1/7070",
        ]
        interval    = 5
        timeout     = 3
        retries     = 3
        startPeriod = 30
      }
      mountPoints = [
        { sourceVolume = "certificates", containerPath = "/tls", readOnly = true },
        { sourceVolume = "proxy", containerPath = "/proxy" },
      ]
      stopTimeout = 60
    },
  ])
}

resource "aws_ecs_service" "paygate" {
  name            = "paygate"
  cluster         = aws_ecs_cluster.payments.id
  task_definition = aws_ecs_task_definition.paygate.arn
  launch_type     = "FARGATE"
  desired_count   = var.desired_count
  # A shell in a container could read the key.
  enable_execute_command             = false
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  health_check_grace_period_seconds  = 60
  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }
  network_configuration {
    assign_public_ip = false
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.paygate.id]
  }
  load_balancer {
    container_name   = "proxy"
    container_port   = 8080
    target_group_arn = aws_lb_target_group.paygate_8080.arn
  }
  load_balancer {
    container_name   = "proxy"
    container_port   = 8090
    target_group_arn = aws_lb_target_group.paygate_8090.arn
  }
  load_balancer {
    container_name   = "proxy"
    container_port   = 7070
    target_group_arn = aws_lb_target_group.paygate_7070.arn
  }
  depends_on = [
    aws_iam_role_policy.payments_paygate_execution, aws_iam_role_policy.payments_paygate_task,
    aws_lb_listener.paygate_8080, aws_lb_listener.paygate_8090, aws_lb_listener.paygate_7070,
  ]
}

# The service terminal

resource "aws_lb" "terminal" {
  load_balancer_type               = "network"
  internal                         = true
  subnets                          = var.subnet_ids
  security_groups                  = [aws_security_group.terminal_balancer.id]
  enable_cross_zone_load_balancing = true
}

# Health is a TCP connection: a balancer has no certificate that the proxy would take.
resource "aws_lb_target_group" "terminal_7000" {
  target_type          = "ip"
  protocol             = "TCP"
  port                 = 7000
  vpc_id               = var.vpc_id
  deregistration_delay = 60
  health_check {
    protocol            = "TCP"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "terminal_7000" {
  load_balancer_arn = aws_lb.terminal.arn
  protocol          = "TCP"
  port              = 7000
  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.terminal_7000.arn
  }
}

resource "aws_ecs_task_definition" "terminal" {
  family                   = "payments-terminal"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.task_cpu
  memory                   = var.task_memory
  runtime_platform {
    cpu_architecture        = var.architecture
    operating_system_family = "LINUX"
  }
  task_role_arn      = aws_iam_role.payments_terminal_task.arn
  execution_role_arn = aws_iam_role.payments_terminal_execution.arn
  volume {
    name = "certificates"
  }
  volume {
    name = "proxy"
  }
  container_definitions = jsonencode([
    # Reads the secrets by the task role, writes the files of the proxy, and ends. The application has the same role: it
    # can read the key of terminal, and no other.
    {
      name                   = "init"
      image                  = var.countersign_image
      essential              = false
      user                   = "101:101"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/terminal"
          awslogs-region        = var.region
          awslogs-stream-prefix = "init"
        }
      }
      command = [
        "init", "--from", "secretsmanager:payments/terminal", "--layout", "json", "--bundle-from",
        "secret:payments/bundle", "--to", "/tls", "--engine", "haproxy", "--conf", "/tls", "--plan",
        "env:COUNTERSIGN_PLAN", "--run-dir", "/proxy", "--connection-age", "30s", "--endpoint",
        "ledger:9000=${aws_lb.ledger.dns_name}:9000",
      ]
      environment = [
        {
          name  = "COUNTERSIGN_PLAN"
          value = "{\"version\":1,\"mesh\":\"payments\",\"trustDomain\":\"payments.internal\",\"revision\":0,\"workload\":{\"name\":\"terminal\",\"kind\":\"service\",\"identity\":\"spiffe://payments.internal/service/terminal\"},\"certificate\":{\"identity\":\"spiffe://payments.internal/service/terminal\",\"dnsNames\":[\"terminal\",\"terminal.payments.internal\"],\"ttl\":\"168h0m0s\",\"renewAfter\":\"120h0m0s\",\"key\":\"ecdsa-p256\",\"authority\":\"pca\"},\"proxy\":{\"engine\":\"haproxy\",\"version\":\"2.6.12\"},\"delivery\":{\"type\":\"store\",\"storeName\":\"vault\",\"store\":{\"type\":\"secretsmanager\"},\"secret\":\"payments/terminal\",\"layout\":\"json\",\"bundle\":\"payments/bundle\"},\"deploy\":\"ecs\",\"ecs\":{\"cluster\":\"payments\",\"service\":\"terminal\"},\"inbound\":[{\"name\":\"0.0.0.0_7000\",\"port\":7000,\"protocol\":\"tcp\",\"app\":17000,\"tls\":\"strict\",\"clientAuth\":\"require\",\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"rules\":[{\"from\":[\"spiffe://payments.internal/gateway/paygate\"]}]}],\"outbound\":[{\"name\":\"127.0.0.1_9000\",\"listen\":9000,\"protocol\":\"grpc\",\"upstream\":\"ledger_9000\"}],\"upstreams\":[{\"name\":\"ledger_9000\",\"service\":\"ledger\",\"port\":9000,\"protocol\":\"grpc\",\"identity\":\"spiffe://payments.internal/service/ledger\",\"serverName\":\"ledger.payments.internal\",\"tls\":true,\"minTLS\":\"1.3\",\"tlsGroups\":[\"X25519MLKEM768\",\"x25519\",\"secp256r1\",\"secp384r1\"],\"endpoints\":[]}]}"
        },
      ]
      mountPoints = [
        { sourceVolume = "certificates", containerPath = "/tls" },
        { sourceVolume = "proxy", containerPath = "/proxy" },
      ]
    },
    # The proxy. It starts when init has succeeded, and not when it has only ended (COMPLETE).
    {
      name                   = "proxy"
      image                  = var.haproxy_image
      essential              = true
      user                   = "101:101"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/terminal"
          awslogs-region        = var.region
          awslogs-stream-prefix = "proxy"
        }
      }
      entryPoint = ["haproxy"]
      command    = ["-W", "-db", "-f", "/tls/haproxy.cfg"]
      dependsOn = [
        { containerName = "init", condition = "SUCCESS" },
      ]
      portMappings = [
        { containerPort = 7000, protocol = "tcp" },
      ]
      healthCheck = {
        command     = ["CMD", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/7000"]
        interval    = 5
        timeout     = 3
        retries     = 3
        startPeriod = 30
      }
      mountPoints = [
        { sourceVolume = "certificates", containerPath = "/tls", readOnly = true },
        { sourceVolume = "proxy", containerPath = "/proxy" },
      ]
      stopTimeout = 60
    },
    # The application. It starts when the proxy serves, because it calls through it, and is stopped before it: ECS stops in the reverse order.
    {
      name                   = "app"
      image                  = var.terminal_image
      essential              = true
      user                   = "10001:10001"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/terminal"
          awslogs-region        = var.region
          awslogs-stream-prefix = "app"
        }
      }
      entryPoint = ["countersign"]
      command    = ["example", "run", "terminal", "--listen", "127.0.0.1:17000", "--ledger", "127.0.0.1:9000"]
      dependsOn = [
        { containerName = "proxy", condition = "HEALTHY" },
      ]
      healthCheck = { command = var.terminal_health_check, interval = 5, timeout = 3, retries = 3, startPeriod = 30 }
      stopTimeout = 30
    },
    # Ends at once, when the application is healthy. ECS calls a task RUNNING, and puts it into its target groups, when all of its
    # containers were started: without this one, requests would come while the application does not listen yet.
    {
      name                   = "ready"
      image                  = var.countersign_image
      essential              = false
      user                   = "101:101"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      logConfiguration = {
        logDriver = "awslogs"
        options = {
          awslogs-group         = "/countersign/payments/terminal"
          awslogs-region        = var.region
          awslogs-stream-prefix = "ready"
        }
      }
      command = ["version"]
      dependsOn = [
        { containerName = "app", condition = "HEALTHY" },
      ]
    },
  ])
}

resource "aws_ecs_service" "terminal" {
  name            = "terminal"
  cluster         = aws_ecs_cluster.payments.id
  task_definition = aws_ecs_task_definition.terminal.arn
  launch_type     = "FARGATE"
  desired_count   = var.desired_count
  # A shell in a container could read the key.
  enable_execute_command             = false
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  health_check_grace_period_seconds  = 60
  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }
  network_configuration {
    assign_public_ip = false
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.terminal.id]
  }
  load_balancer {
    container_name   = "proxy"
    container_port   = 7000
    target_group_arn = aws_lb_target_group.terminal_7000.arn
  }
  depends_on = [
    aws_iam_role_policy.payments_terminal_execution, aws_iam_role_policy.payments_terminal_task,
    aws_lb_listener.terminal_7000,
  ]
}

# The rotation: every hour what is due, and what ACM tells

resource "aws_lambda_function" "payments_rotation" {
  function_name                  = "payments-rotation"
  description                    = "Rotates the certificates of the mesh payments"
  runtime                        = "provided.al2023"
  handler                        = "bootstrap"
  architectures                  = [var.architecture == "ARM64" ? "arm64" : "x86_64"]
  s3_bucket                      = var.function_bucket
  s3_key                         = var.function_key
  role                           = aws_iam_role.payments_rotation.arn
  timeout                        = 900
  memory_size                    = 512
  reserved_concurrent_executions = 2
  vpc_config {
    subnet_ids         = var.subnet_ids
    security_group_ids = [aws_security_group.payments_rotation.id]
  }
  environment {
    variables = { COUNTERSIGN_LOG_LEVEL = "info", COUNTERSIGN_AUTHORITY_PCA_ARN = aws_acmpca_certificate_authority.pca.arn }
  }
  depends_on = [aws_iam_role_policy.payments_rotation, aws_cloudwatch_log_group.payments_rotation]
}

# What failed is tried again by the schedule. Lambda would do so twice at once, and each try may cost a certificate.
resource "aws_lambda_function_event_invoke_config" "payments_rotation" {
  function_name                = aws_lambda_function.payments_rotation.function_name
  maximum_retry_attempts       = 0
  maximum_event_age_in_seconds = 3600
}

resource "aws_cloudwatch_event_rule" "payments_rotation_schedule" {
  name                = "payments-rotation-schedule"
  description         = "Rotates what is due in the mesh payments"
  schedule_expression = "rate(1 hour)"
  state               = "ENABLED"
}

resource "aws_cloudwatch_event_target" "payments_rotation_schedule" {
  rule      = aws_cloudwatch_event_rule.payments_rotation_schedule.name
  target_id = "rotation"
  arn       = aws_lambda_function.payments_rotation.arn
}

resource "aws_lambda_permission" "payments_rotation_schedule" {
  action        = "lambda:InvokeFunction"
  function_name = aws_lambda_function.payments_rotation.function_name
  principal     = "events.amazonaws.com"
  source_arn    = aws_cloudwatch_event_rule.payments_rotation_schedule.arn
}

# Alarms. Data that is missing is an alarm, too: a schedule that stopped silently is one

resource "aws_cloudwatch_metric_alarm" "rotation_errors" {
  alarm_name          = "payments-RotationErrors"
  alarm_description   = "The rotation of the mesh payments failed, or did not run"
  namespace           = "AWS/Lambda"
  metric_name         = "Errors"
  dimensions          = { FunctionName = "payments-rotation" }
  statistic           = "Sum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "checkout_expiry" {
  alarm_name          = "payments-CheckoutExpiry"
  alarm_description   = "The certificate of checkout ends soon: half of the time to rotate it has gone"
  namespace           = "Countersign"
  metric_name         = "DaysToExpiry"
  dimensions          = { Mesh = "payments", Service = "checkout" }
  statistic           = "Minimum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "checkout_overdue" {
  alarm_name          = "payments-CheckoutOverdue"
  alarm_description   = "The last rotation of checkout that succeeded is long ago"
  namespace           = "Countersign"
  metric_name         = "HoursSinceSuccess"
  dimensions          = { Mesh = "payments", Service = "checkout" }
  statistic           = "Maximum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 144
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "checkout_failures" {
  alarm_name          = "payments-CheckoutFailures"
  alarm_description   = "A rotation of checkout failed"
  namespace           = "Countersign"
  metric_name         = "Failures"
  dimensions          = { Mesh = "payments", Service = "checkout" }
  statistic           = "Sum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "ledger_expiry" {
  alarm_name          = "payments-LedgerExpiry"
  alarm_description   = "The certificate of ledger ends soon: half of the time to rotate it has gone"
  namespace           = "Countersign"
  metric_name         = "DaysToExpiry"
  dimensions          = { Mesh = "payments", Service = "ledger" }
  statistic           = "Minimum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "ledger_overdue" {
  alarm_name          = "payments-LedgerOverdue"
  alarm_description   = "The last rotation of ledger that succeeded is long ago"
  namespace           = "Countersign"
  metric_name         = "HoursSinceSuccess"
  dimensions          = { Mesh = "payments", Service = "ledger" }
  statistic           = "Maximum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 144
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "ledger_failures" {
  alarm_name          = "payments-LedgerFailures"
  alarm_description   = "A rotation of ledger failed"
  namespace           = "Countersign"
  metric_name         = "Failures"
  dimensions          = { Mesh = "payments", Service = "ledger" }
  statistic           = "Sum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "paygate_expiry" {
  alarm_name          = "payments-PaygateExpiry"
  alarm_description   = "The certificate of paygate ends soon: half of the time to rotate it has gone"
  namespace           = "Countersign"
  metric_name         = "DaysToExpiry"
  dimensions          = { Mesh = "payments", Service = "paygate" }
  statistic           = "Minimum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "paygate_overdue" {
  alarm_name          = "payments-PaygateOverdue"
  alarm_description   = "The last rotation of paygate that succeeded is long ago"
  namespace           = "Countersign"
  metric_name         = "HoursSinceSuccess"
  dimensions          = { Mesh = "payments", Service = "paygate" }
  statistic           = "Maximum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 144
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "paygate_failures" {
  alarm_name          = "payments-PaygateFailures"
  alarm_description   = "A rotation of paygate failed"
  namespace           = "Countersign"
  metric_name         = "Failures"
  dimensions          = { Mesh = "payments", Service = "paygate" }
  statistic           = "Sum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "terminal_expiry" {
  alarm_name          = "payments-TerminalExpiry"
  alarm_description   = "The certificate of terminal ends soon: half of the time to rotate it has gone"
  namespace           = "Countersign"
  metric_name         = "DaysToExpiry"
  dimensions          = { Mesh = "payments", Service = "terminal" }
  statistic           = "Minimum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "terminal_overdue" {
  alarm_name          = "payments-TerminalOverdue"
  alarm_description   = "The last rotation of terminal that succeeded is long ago"
  namespace           = "Countersign"
  metric_name         = "HoursSinceSuccess"
  dimensions          = { Mesh = "payments", Service = "terminal" }
  statistic           = "Maximum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 144
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "terminal_failures" {
  alarm_name          = "payments-TerminalFailures"
  alarm_description   = "A rotation of terminal failed"
  namespace           = "Countersign"
  metric_name         = "Failures"
  dimensions          = { Mesh = "payments", Service = "terminal" }
  statistic           = "Sum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

resource "aws_cloudwatch_metric_alarm" "pca_authority_budget" {
  alarm_name          = "payments-PcaAuthorityBudget"
  alarm_description   = "Four fifths of what pca may issue this month are spent"
  namespace           = "Countersign"
  metric_name         = "BudgetSpent"
  dimensions          = { Mesh = "payments", Authority = "pca" }
  statistic           = "Maximum"
  period              = 8100
  evaluation_periods  = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 160
  treat_missing_data  = "breaching"
  alarm_actions       = [var.alarm_topic]
}

output "rotation_function" {
  description = "Rotates what is due when it is invoked."
  value       = aws_lambda_function.payments_rotation.function_name
}

output "payments_auditor_policy" {
  description = "Looks at the mesh payments and reads no secret (countersign check aws)."
  value       = aws_iam_policy.payments_auditor.arn
}

output "pca_arn" {
  description = "The private CA pca."
  value       = aws_acmpca_certificate_authority.pca.arn
}

output "checkout_address" {
  description = "Where checkout is reached."
  value       = aws_lb.checkout.dns_name
}

output "ledger_address" {
  description = "Where ledger is reached."
  value       = aws_lb.ledger.dns_name
}

output "paygate_address" {
  description = "Where paygate is reached."
  value       = aws_lb.paygate.dns_name
}

output "terminal_address" {
  description = "Where terminal is reached."
  value       = aws_lb.terminal.dns_name
}
